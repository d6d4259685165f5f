"""The plain networks against the paper's table, and what every network here owes its layers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from layerscope import nets
from layerscope.errors import SourceError
from layerscope.nets.layers import Map
from layerscope.nets.plain import shares


def on_meta(spec: str, norm: str = "none", **kwargs: object) -> tuple[nn.Module, int, list[tuple[int, ...]]]:
    """The network, its multiply-adds for one image and its layers' output shapes, at no cost."""
    net = nets.build(spec, norm, **kwargs).to("meta")
    macs, shapes = [], []

    def count(module: nn.Conv2d, inputs: object, out: torch.Tensor) -> None:
        macs.append(math.prod(out.shape[2:]) * module.weight.numel())
        shapes.append(tuple(out.shape[1:]))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    in_shape = kwargs.get("in_shape", (3, 32, 32))
    out = net(torch.empty(2, *in_shape, device="meta"))
    assert out.shape == (2, kwargs.get("classes", 10))
    return net, sum(macs), shapes


@pytest.mark.parametrize(
    ("name", "convs", "params", "macs"),
    [("cfg_10", 10, 9.40e6, 0.115e9), ("cfg_20", 20, 13.31e6, 0.358e9), ("cfg_40", 40, 42.36e6, 1.078e9)],
)
def test_cfg_nets_have_the_papers_size(name: str, convs: int, params: float, macs: float) -> None:
    net, counted, shapes = on_meta(name)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == convs
    assert sum(p.numel() for p in net.parameters() if p.ndim == 4) == pytest.approx(params, rel=1e-3)
    assert counted == pytest.approx(macs, rel=5e-3)
    assert shapes[-1] == (512, 2, 2)


def test_cfg_10_is_laid_out_as_the_paper_says() -> None:
    _, _, shapes = on_meta("cfg_10")
    assert shapes == [
        (64, 32, 32),
        (64, 16, 16),
        (128, 16, 16),
        (128, 8, 8),
        (256, 8, 8),
        (256, 4, 4),
        (512, 4, 4),
        (512, 2, 2),
        (512, 2, 2),
        (512, 2, 2),
    ]


def test_width_scales_every_layer() -> None:
    _, _, wide = on_meta("cfg_20")
    _, _, narrow = on_meta("cfg_20:width=8")
    assert [(8 * c, h, w) for c, h, w in narrow] == wide


def test_uniform_keeps_map_and_width() -> None:
    _, _, shapes = on_meta("uniform:width=8,depth=7")
    assert shapes == [(8, 32, 32)] * 7


def test_circular_padding_makes_the_network_commute_with_shifts() -> None:
    net = nets.build("uniform:width=4,depth=3,padding=circular", "batch", in_shape=(1, 6, 6))
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    shifted = net.layers(x.roll((2, 3), (2, 3)))
    assert torch.allclose(shifted, net.layers(x).roll((2, 3), (2, 3)), atol=1e-5)


def test_plain_has_three_strided_stages() -> None:
    _, _, shapes = on_meta("plain:width=16,depth=10", in_shape=(1, 16, 16))
    assert shapes == [(16, 8, 8)] * 4 + [(32, 4, 4)] * 3 + [(64, 2, 2)] * 3


def test_vgg_pools_between_its_stages() -> None:
    _, _, shapes = on_meta("vgg:width=4")
    assert len(shapes) == 13
    assert shapes[0] == (4, 32, 32)
    assert shapes[-1] == (32, 2, 2)
    assert [c for c, _ in itertools.groupby(s[0] for s in shapes)] == [4, 8, 16, 32]


def test_mlp_takes_any_shape() -> None:
    for shape in [(7,), (3, 8, 8), (2, 3, 4, 5)]:
        net = nets.build("mlp:width=16,depth=3", "layer", in_shape=shape, classes=4)
        assert net(torch.randn(2, *shape)).shape == (2, 4)
    assert sum(isinstance(m, nn.Linear) for m in net.modules()) == 4


@pytest.mark.parametrize(
    "spec", ["cfg_10:width=4", "cfg_40:width=2", "vgg:width=4", "plain:width=4", "resnet20:width=4", "convnext:width=4"]
)
@pytest.mark.parametrize("size", [2, 3, 8, 17, 28, 33])
def test_any_image_size_ends_with_a_map_that_has_statistics(spec: str, size: int) -> None:
    _, _, shapes = on_meta(spec, in_shape=(1, size, size + 1))
    assert min(min(shape[1:]) for shape in shapes) >= 2


def test_a_stride_is_dropped_only_where_the_map_would_vanish() -> None:
    size = Map(32, 6)
    assert [size.stride(2) for _ in range(4)] == [2, 2, 1, 1]
    assert (size.height, size.width) == (8, 2)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 32, 1), (3, 32), (32,), (3, 0, 32), "image", (3, None, 2)])
def test_a_shape_that_cannot_be_is_refused(shape: object) -> None:
    with pytest.raises(SourceError, match=r"cfg_10"):
        nets.build("cfg_10:width=4", in_shape=shape)


def test_hidden_layers_are_he_normal_and_the_head_is_pytorchs_default() -> None:
    net = nets.build("uniform:width=64,depth=4", "none", seed=3)
    for layer in net.layers[1:]:
        weight = layer.conv.weight
        # std of a sample std over n normal numbers is about 1/sqrt(2n)
        tolerance = 5 / math.sqrt(2 * weight.numel())
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=tolerance)
        assert weight.abs().max() > 3.5 * weight.std()
        assert layer.conv.bias is None
    bound = 1 / math.sqrt(64)
    for drawn in (net.head.weight, net.head.bias):
        assert drawn.abs().max() <= bound
    assert net.head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_bias_only_where_the_norm_needs_one() -> None:
    with_bias = nets.build("cfg_10:width=4", "sws")
    biases = [p for name, p in with_bias.named_parameters() if name.endswith("conv.bias")]
    assert len(biases) == 10
    assert all(torch.equal(b, torch.zeros_like(b)) for b in biases)


def test_shares_are_even() -> None:
    assert shares(13, 5) == [3, 3, 3, 2, 2]
    assert all(sum(shares(n, 3)) == n for n in range(3, 30))
