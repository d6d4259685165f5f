"""Moments from tables against the definitions on the tensor itself, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layerscope import quantities as q

SHAPES = [(8, 6), (8, 6, 5), (5, 3, 4, 4), (4, 2, 3, 3, 2), (3, 4, 1, 1)]


def draw(shape: tuple[int, ...], offset: float = 0.7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) * 2 + offset


@pytest.mark.parametrize("shape", SHAPES)
def test_against_torch(shape: tuple[int, ...]) -> None:
    x = draw(shape)
    t = q.tables(x)
    channels = x.movedim(1, 0).flatten(1)
    torch.testing.assert_close(q.activation_variance(t), channels.var(1).mean())
    torch.testing.assert_close(q.preactivation_std(t), channels.std(1).mean())
    torch.testing.assert_close(q.second_moment(t), x.square().mean())
    torch.testing.assert_close(q.mean_value(t), x.mean())


def test_channels_last_axis() -> None:
    x = draw((4, 6, 5))
    last, first = q.tables(x, channel_axis=-1), q.tables(x.transpose(1, 2))
    torch.testing.assert_close(last.sums, first.sums)
    torch.testing.assert_close(last.norms, first.norms)
    assert last.positions == 6


def test_half_precision_is_reduced_in_float32() -> None:
    x = torch.full((2, 3, 70000), 1.0, dtype=torch.float16)
    assert q.tables(x).sums.dtype == torch.float32
    assert float(q.second_moment(q.tables(x))) == pytest.approx(1)


def test_leading_axes_are_a_batch_of_layers() -> None:
    layers = [draw((4, 3, 5), offset) for offset in (0.0, 1.0, 5.0)]
    each = [q.tables(x) for x in layers]
    together = q.Tables(torch.stack([t.sums for t in each]), torch.stack([t.norms for t in each]), 5)
    torch.testing.assert_close(q.activation_variance(together), torch.stack([q.activation_variance(t) for t in each]))


def test_one_value_per_channel_has_no_variance() -> None:
    t = q.tables(draw((1, 4)))
    assert q.activation_variance(t).isnan()
    assert q.second_moment(t).isfinite()


@pytest.mark.parametrize(
    ("over", "layer"),
    [
        ("batch", nn.BatchNorm2d(8, affine=False, eps=1e-30, dtype=torch.float64)),
        ("layer", nn.GroupNorm(1, 8, affine=False, eps=0, dtype=torch.float64)),
        ("instance", nn.InstanceNorm2d(8, eps=0, dtype=torch.float64)),
        (4, nn.GroupNorm(2, 8, affine=False, eps=0, dtype=torch.float64)),
    ],
)
def test_normalizer_statistics_are_what_the_layer_divides_by(over: str | int, layer: nn.Module) -> None:
    x = draw((3, 8, 4, 4))
    mean, variance = q.normalizer_statistics(q.tables(x), over)
    if over == "batch":
        mean, variance = mean[None, :, None, None], variance[None, :, None, None]
    elif over == "layer":
        mean, variance = mean[:, None, None, None], variance[:, None, None, None]
    elif over == "instance":
        mean, variance = mean[..., None, None], variance[..., None, None]
    else:
        mean, variance = (v.repeat_interleave(4, 1)[..., None, None] for v in (mean, variance))
    torch.testing.assert_close((x - mean) / variance.sqrt(), layer(x))


def test_normalizer_statistics_refuse_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="6 channels cannot be normalized over 4: batch, layer, instance or a size"):
        q.normalizer_statistics(q.tables(draw((2, 6, 3))), 4)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 50), st.floats(-20, 20))
def test_scale_and_shift(scale: float, shift: float) -> None:
    x = draw((6, 4, 5), 0.0)
    before, after = q.tables(x), q.tables(scale * x + shift)
    torch.testing.assert_close(
        q.activation_variance(after), scale**2 * q.activation_variance(before), rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(q.second_moment(q.tables(scale * x)), scale**2 * q.second_moment(before))


def test_cancellation_counts_lost_digits() -> None:
    x = draw((16, 3, 10), 0.0)
    assert float(q.cancellation(q.tables(x))) < 1
    assert 1e5 < float(q.cancellation(q.tables(x + 1000))) < 1e7
    assert float(q.cancellation(q.tables(torch.zeros(4, 3, 5)))) == 0
    assert float(q.cancellation(q.tables(torch.ones(4, 3, 5)))) > 1e6


@pytest.mark.parametrize("affine", [True, False])
def test_tables_of_a_batch_norm_output_follow_from_its_input(affine: bool) -> None:
    layer = nn.BatchNorm2d(5, affine=affine, dtype=torch.float64)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x = draw((6, 5, 4, 4))
    got, expected = q.batch_normalized(q.tables(x), layer.weight, layer.bias, layer.eps), q.tables(layer(x))
    torch.testing.assert_close(got.sums, expected.sums)
    torch.testing.assert_close(got.norms, expected.norms)
