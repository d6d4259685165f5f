from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from layerscope.methods.focus import FocusConfig, FocusedModel
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.errors import BuildError, FocusError, FocusTypeError
from layerscope.methods.focus.fills import mean_fills
from layerscope.methods.focus.graph import trace
from layerscope.methods.focus.plan import make_plan, zero_fills
from layerscope.methods.focus.reference import masked_forward
from layerscope.methods.focus.runner import Runner
from methods.focus.focus_nets import FAMILIES, MASKS, build, make_mask

ALL = sorted(FAMILIES)
FULL = float("-inf")


def batch(n: int = 3, size: tuple[int, int] = (37, 46), seed: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def focused(name: str, *, x: torch.Tensor | None = None, model: nn.Module | None = None, **options) -> FocusedModel:
    keys = ("relevance", "threshold", "grid", "shape", "fill", "halo")
    given = {"relevance": "norm", **{k: options.pop(k) for k in keys if k in options}}
    example = batch() if x is None else x
    return FocusedModel(model or build(name), FocusConfig(FAMILIES[name][1], **given), example=example, **options)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) < tolerance


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 3])
def test_a_full_set_is_the_dense_network_to_the_bit(name, n):
    model, x = build(name), batch(n)
    f = focused(name, model=model, x=x, threshold=FULL)
    with torch.no_grad():
        assert torch.equal(f(x), model(x))
        assert torch.equal(f(x, aoi=torch.ones(37, 46, dtype=torch.bool)), model(x))


@pytest.mark.parametrize("backend", ["avx512", "avx2", "plain", "torch"])
@pytest.mark.parametrize("name", ALL)
def test_a_full_set_without_routing_is_the_dense_network_up_to_rounding(name, backend):
    model, x = build(name), batch(2)
    try:
        f = focused(name, model=model, threshold=FULL, route=False, backend=backend)
    except BuildError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        close(f(x), model(x))
    assert f.last_route == ["focused"] * 2


@pytest.mark.parametrize("backend", ["avx512", "avx2", "torch"])
@pytest.mark.parametrize("fill", ["zero", "mean"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", ALL)
def test_any_set_is_the_masked_dense_network(name, kind, fill, backend):
    model, x = build(name), batch(2)
    try:
        chosen = make_backend(backend)
    except BuildError as error:
        pytest.skip(str(error))
    traced = trace(model, x)
    cut = traced.cut(FAMILIES[name][1])
    plan = make_plan(traced, cut, stem_on_rows=chosen.stem_on_rows)
    fills = zero_fills(plan) if fill == "zero" else mean_fills(plan, [x])
    mask = make_mask(kind, 2, *cut.grid)
    runner = Runner(plan, chosen, fills)
    with torch.no_grad():
        got = runner.tail(runner.stem(x), mask)
        close(got, masked_forward(plan, fills, x, mask))
        assert float((got - model(x)).abs().max()) > 1e-4  # the mask does something


def test_zero_fill_is_what_multiplying_activations_by_masks_gives():
    """The reference itself against hooks on the original modules: zeros after every block's output."""
    model, x = build("resnet"), batch(2, (64, 64))
    traced = trace(model, x)
    plan = make_plan(traced, traced.cut("pool"))
    mask = make_mask("blob", 2, *traced.cut("pool").grid)

    def masker(module, inputs, output):
        stride = mask.shape[1] / output.shape[2]
        small = nn.functional.max_pool2d(mask[:, None].float(), max(1, round(stride)), ceil_mode=True)
        return output * small[:, :, : output.shape[2], : output.shape[3]]

    copied = copy.deepcopy(model)
    for module in (copied.pool, *(m for b in copied.blocks for m in (b, b.a, b.b, b.down) if m is not None)):
        module.register_forward_hook(masker)
    with torch.no_grad():
        close(masked_forward(plan, zero_fills(plan), x, mask), copied(x))


@pytest.mark.parametrize("name", ALL)
def test_an_image_does_not_depend_on_its_batch(name):
    f, x = focused(name, grid=2, threshold=_middle(name)), batch(4)
    with torch.no_grad():
        whole = f(x)
        assert set(f.last_route) == {"focused"}
        close(torch.cat([f(x[:1]), f(x[1:])]), whole)


def _middle(name: str) -> float:
    f = focused(name)
    with torch.no_grad():
        runner = f._runner
        rows, grid = runner.maps(runner.stem(batch(4)))
        return float(f._relevance(rows, grid).median())


def test_layouts_give_the_same_result():
    f, x = focused("resnet", threshold=_middle("resnet")), batch(2)
    wide = torch.zeros(2, 6, 37, 92)
    wide[:, ::2, :, ::2] = x
    for same in (x.contiguous(memory_format=torch.channels_last), wide[:, ::2, :, ::2]):
        close(f(same), f(x))
    mask = make_mask("blob", 2, *_grid("resnet"))
    turned = mask.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(f(x, aoi=turned), f(x, aoi=mask))


def _grid(name: str) -> tuple[int, int]:
    return trace(build(name), batch()).cut(FAMILIES[name][1]).grid


def test_full_empty_and_focused_images_in_one_batch_each_go_their_way():
    model, x = build("resnet"), batch(3)
    f = focused("resnet", model=model)
    mask = make_mask("blob", 3, *_grid("resnet"))
    mask[0], mask[2] = True, False
    y = f(x, aoi=mask)
    assert f.last_route == ["dense", "focused", "dense"]
    assert [tuple(m.shape) for m in f.last_aoi] == [_grid("resnet")] * 3
    with torch.no_grad():
        close(y[[0, 2]], model(x[[0, 2]]))
        close(y[1:2], f(x[1:2], aoi=mask[1]))
    filled = focused("resnet", model=model, on_empty="fill")
    y = filled(x, aoi=mask)
    assert filled.last_route == ["dense", "focused", "focused"]
    assert y.isfinite().all()


def test_global_mean_keeps_the_dense_divisor():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), *(nn.Conv2d(4, 4, 1) for _ in range(3)), nn.AdaptiveAvgPool2d(1))
    x = torch.rand(1, 1, 4, 4)
    f = FocusedModel(net.eval(), FocusConfig("1"), example=x)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    with torch.no_grad():
        one = net[:-1](x)[:, :, 1, 2]
        close(f(x, aoi=mask)[:, :, 0, 0], one / 16)


def test_layer_norm_of_zero_is_its_bias():
    traced = trace(build("convnext"), batch())
    plan = make_plan(traced, traced.cut("permute_1"))
    fills = zero_fills(plan)
    norm = next(s for s in plan.steps if type(s.kind).__name__ == "Norm" and s.inside and s.name == "layer_norm_1")
    torch.testing.assert_close(fills[norm.node], norm.kind.bias)


def test_crop_once_equals_the_sparse_path_on_an_aligned_box():
    model = build("vgg")
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.bias)
    x = batch(1, (32, 32))
    f = FocusedModel(model, FocusConfig("features.1"), example=x)
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 4:28] = True
    with torch.no_grad():
        early = model.features[:2](x)
        tail = model.features[2:](early[:, :, 8:24, 4:28])
        pasted = torch.zeros(1, 32, 8, 8)
        pasted[:, :, 2:6, 1:7] = tail
        close(f(x, aoi=mask), model.classifier(pasted))


def test_state_dict_copy_and_pickle_keep_the_function():
    x = batch()
    f = focused("mobile", relevance="novelty", threshold=12.0, fill="mean", calibration=[x])
    y = f(x)
    assert "focused" in f.last_route
    assert torch.equal(copy.deepcopy(f)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(f))(x), y)
    other = focused(
        "mobile", model=build("mobile", 7), relevance="novelty", threshold=12.0, fill="mean", calibration=[3 * x]
    )
    assert not torch.equal(other(x), y)
    other.load_state_dict(f.state_dict())
    assert torch.equal(other(x), y)


def test_the_original_is_never_touched():
    model, x = build("resnet"), batch(1)
    before = copy.deepcopy(model.state_dict())
    f = focused("resnet", model=model, threshold=1.0)
    f(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    f.dense.head.weight.data.zero_()
    assert not torch.equal(model.head.weight, f.dense.head.weight)
    assert not any(m._forward_hooks for m in model.modules())


def test_cost_tables_send_expensive_sets_the_dense_way():
    f, x = focused("resnet"), batch(1)
    mask = make_mask("blob", 1, *_grid("resnet"))
    table = f.calibrate_cost(x, repeats=1)
    assert table.levels[0].grid == _grid("resnet")
    from dataclasses import replace

    f.costs = replace(table, dense_ms=0.0)
    f(x, aoi=mask)
    assert f.last_route == ["dense"]
    f.costs = replace(table, dense_ms=1e9)
    f(x, aoi=mask)
    assert f.last_route == ["focused"]


def test_an_operation_that_needs_the_map_ends_the_region_and_is_named():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 4, 3, padding=1),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    f = FocusedModel(net, FocusConfig("1"), example=x)
    assert [u.split(":")[0] for u in f.unsupported] == ["4"]
    mask = make_mask("blob", 2, 8, 8)
    traced = trace(net, x)
    plan = make_plan(traced, traced.cut("1"))
    close(f(x, aoi=mask), masked_forward(plan, zero_fills(plan), x, mask))


def test_reflect_padding_and_batch_statistics_run_dense():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(8, track_running_stats=False),
    ).eval()  # fmt: skip
    f = FocusedModel(net, FocusConfig("1"), example=torch.randn(1, 3, 9, 9))
    assert "padding_mode 'reflect'" in f.unsupported[0]


def test_bad_inputs_name_the_argument():
    model, x = build("vgg"), batch(1, (32, 32))
    with pytest.raises(FocusError, match="no Conv2d"):
        FocusedModel(nn.Linear(2, 2).eval(), None, example=x)
    with pytest.raises(FocusError, match="training mode"):
        FocusedModel(build("vgg").train(), None, example=x)
    with pytest.raises(FocusTypeError, match=r"nn\.Module"):
        FocusedModel(3, None, example=x)  # type: ignore[arg-type]
    with pytest.raises(FocusError, match=r"no cut point 'features\.99'.*features"):
        FocusedModel(model, FocusConfig("features.99"), example=x)
    with pytest.raises(FocusError, match="threshold: NaN"):
        FocusedModel(model, FocusConfig("features.1", threshold=float("nan")), example=x)
    with pytest.raises(FocusError, match="needs calibration"):
        FocusedModel(model, FocusConfig("features.1", fill="mean"), example=x)
    f = FocusedModel(model, FocusConfig("features.1", threshold=1.0), example=x)
    with pytest.raises(FocusError, match="4 axes"):
        f(x[0])
    with pytest.raises(FocusTypeError, match="floating point"):
        f(x.int())
    with pytest.raises(FocusError, match="2 maps for a batch of 1"):
        f(x, aoi=torch.ones(2, 32, 32, dtype=torch.bool))
    with pytest.raises(FocusTypeError, match="dtype bool"):
        f(x, aoi=torch.ones(1, 32, 32))
    with pytest.raises(FocusError, match="coarser"):
        f(x, aoi=torch.ones(1, 16, 16, dtype=torch.bool))
    with pytest.raises(FocusError, match="requires grad"):
        f(x.clone().requires_grad_())
    with pytest.raises(FocusError, match="holds NaN"):
        f(torch.full_like(x, float("nan")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about jit
        with pytest.raises(FocusError, match="compiled or exported"):
            torch.jit.trace(f, x)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.conv(x)
        return x


def test_an_untraceable_model_is_refused_with_the_line():
    with pytest.raises(FocusError, match=r"cannot trace it .*test_model\.py, line \d+: if x\.sum\(\) > 0"):
        FocusedModel(Branches().eval(), None, example=batch(1))


def test_other_dtypes_run_densely_with_one_notice():
    model = build("vgg").double()
    x = batch(1, (32, 32))
    f = FocusedModel(build("vgg"), FocusConfig("features.1", threshold=1.0), example=x)
    f.dense.double()
    with pytest.warns(RuntimeWarning, match="float64"):
        y = f(x.double())
    with torch.no_grad():
        assert torch.equal(y, model(x.double()))
    f(x.double())  # no second notice: warnings are errors here


def test_an_empty_batch_is_an_empty_result():
    f = focused("vgg", threshold=1.0)
    assert f(batch(1)[:0]).shape == (0, 7)


def test_two_threads_of_python_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    f = focused("resnet", threshold=_middle("resnet"))
    xs = [batch(2, seed=s) for s in range(6)]
    want = [f(x) for x in xs]
    with ThreadPoolExecutor(3) as pool:
        for got, expected in zip(pool.map(f, xs), want, strict=True):
            torch.testing.assert_close(got, expected)


def test_two_kernel_threads_give_what_one_gives():
    x = batch(2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append([focused(name, threshold=0.1)(x) for name in ALL])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
