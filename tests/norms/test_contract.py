"""Every registered norm, by name: what a layer of this package promises."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from layerscope import norms
from layerscope.norms import NormInputError

SPECS = [norms.info(n).example or n for n in norms.names()]
SHAPES = {"vector": (8, 16), "token": (4, 5, 16), "map": (4, 16, 6, 6)}
#: what has no statistics of its own kind on a layout, and says so
REFUSED = {("instance", "vector"), ("switchable", "vector"), ("evonorm-s0", "vector"), ("evonorm-s0", "token")}
BATCH = {"batch", "variance", "evonorm-b0", "mean", "ghost", "renorm", "switchable", "mixture", "mode"}


def stack(spec: str, channels: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = norms.recipe(spec)
    return nn.Sequential(made.norm(channels), made.activation(channels))


def cases() -> list[tuple[str, str]]:
    return [(spec, layout) for spec in SPECS for layout in SHAPES if (spec, layout) not in REFUSED]


def data(layout: str, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPES[layout], generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 0.5


@pytest.mark.parametrize(("spec", "layout"), sorted(REFUSED))
def test_refused_layouts_say_why(spec: str, layout: str) -> None:
    with pytest.raises(NormInputError):
        stack(spec)(data(layout))


@pytest.mark.parametrize(("spec", "layout"), cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_finite_gradients(spec: str, layout: str, dtype: torch.dtype) -> None:
    net = stack(spec).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = data(layout, dtype=dtype).requires_grad_()
    y = net(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert x.grad is not None
    assert bool(y.isfinite().all())
    assert bool(x.grad.isfinite().all())
    for name, p in net.named_parameters():
        if "v" not in name:
            assert p.grad is not None, name
            assert bool(p.grad.isfinite().all()), name


@pytest.mark.parametrize(("spec", "layout"), cases())
def test_autocast_keeps_statistics_wide(spec: str, layout: str) -> None:
    net = stack(spec)
    x = data(layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x.bfloat16())
    full = stack(spec)(x.bfloat16().float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("spec", SPECS)
def test_statistics_survive_an_offset_that_half_precision_sums_would_lose(spec: str) -> None:
    net, x = stack(spec), (data("map") * 0.5 + 20).half()
    torch.testing.assert_close(net(x).float(), stack(spec)(x.float()), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize(("spec", "layout"), cases())
def test_evaluation_mode_treats_every_sample_by_itself(spec: str, layout: str) -> None:
    net, x = stack(spec).double(), data(layout, dtype=torch.float64)
    for seed in range(3):
        net(data(layout, seed, torch.float64))
    net.eval()
    torch.testing.assert_close(net(x[:1]), net(x)[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_the_batch_matters_exactly_where_the_recipe_says_so(spec: str) -> None:
    net, x = stack(spec).double(), data("map", dtype=torch.float64)
    other = x.clone()
    other[1:] = data("map", 7, torch.float64)[1:]
    same = torch.allclose(net(x)[0], net(other)[0], rtol=1e-9, atol=1e-9)
    assert same == (not norms.recipe(spec).uses_batch)
    assert norms.recipe(spec).uses_batch == (spec.split(":")[0] in BATCH)


@pytest.mark.parametrize("spec", SPECS)
def test_state_dict_round_trip_deepcopy_and_pickle(spec: str) -> None:
    net = stack(spec)
    for seed in range(3):
        net(data("map", seed).requires_grad_()).square().sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    twin = stack(spec, seed=9)
    missing = twin.load_state_dict(net.state_dict())
    assert not missing.missing_keys
    stored = io.BytesIO()
    torch.save(net, stored)
    stored.seek(0)
    revived = torch.load(stored, weights_only=False)
    x = data("map", 5)
    for mode in (True, False):
        want = copy.deepcopy(net).train(mode)(x)
        torch.testing.assert_close(copy.deepcopy(twin).train(mode)(x), want)
        torch.testing.assert_close(copy.deepcopy(revived).train(mode)(x), want)


@pytest.mark.parametrize("spec", SPECS)
def test_running_statistics_carry_no_autograd_history(spec: str) -> None:
    net, x = stack(spec), data("map").requires_grad_()
    net(x).square().sum().backward()
    assert not any(b.requires_grad for b in net.buffers())
    net.eval()
    net(x).square().sum().backward()


@pytest.mark.parametrize("spec", SPECS)
def test_memory_layout_does_not_change_the_result(spec: str) -> None:
    x = data("map")
    channels_last = stack(spec)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, stack(spec)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [s for s in SPECS if norms.recipe(s).info.norm is not None])
def test_wrong_inputs_are_refused_with_a_sentence(spec: str) -> None:
    layer = norms.build(spec, 16)
    for bad in (torch.randn(4, 12, 6, 6), torch.randn(16), torch.zeros(4, 16, 6, 6, dtype=torch.int64)):
        with pytest.raises(NormInputError):
            layer(bad)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (1, 16), (4, 16, 1, 1)])
def test_too_small_statistics_raise_or_stay_finite(spec: str, shape: tuple[int, ...]) -> None:
    net = stack(spec)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        y = net(x)
    except NormInputError:
        return  # the sentences themselves are read in test_layers.py
    y.square().sum().backward()
    assert x.grad is not None
    assert bool(y.isfinite().all())
    assert bool(x.grad.isfinite().all())
    # a single sample may be refused or kept, never flattened to a constant
    assert y.abs().max() > 0


@pytest.mark.parametrize("spec", SPECS)
def test_constant_and_zero_inputs_stay_finite(spec: str) -> None:
    for value in (0.0, 3.0):
        x = torch.full((4, 16, 6, 6), value, requires_grad=True)
        y = stack(spec)(x)
        y.square().sum().backward()
        assert x.grad is not None
        assert bool(y.isfinite().all())
        assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("spec", SPECS)
def test_weight_slot_returns_the_same_layer(spec: str) -> None:
    made = norms.recipe(spec)
    for layer, x in ((nn.Conv2d(4, 8, 3), torch.randn(2, 4, 5, 5)), (nn.Linear(4, 8), torch.randn(2, 4))):
        same = made.weight(layer)
        assert same is layer
        out = same(x)
        out.sum().backward()
        assert bool(out.isfinite().all())
        changed = any("parametrizations" in n for n, _ in layer.named_parameters())
        assert changed == made.acts_on_weights
