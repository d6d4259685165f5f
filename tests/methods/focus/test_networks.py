"""Networks and modules as people really have them: hooks, parametrizations, code that torch.fx cannot follow."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerscope.methods.focus import FocusConfig, FocusedModel
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.graph import trace
from layerscope.methods.focus.levels import Geometry, Level
from layerscope.methods.focus.plan import make_plan, zero_fills
from layerscope.methods.focus.reference import masked_forward
from layerscope.methods.focus.runner import Runner
from methods.focus.focus_nets import FAMILIES, build, conv_bn, make_mask

X = torch.randn(2, 3, 29, 34, generator=torch.Generator().manual_seed(3))


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) < 1e-5


def chain(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *layers).eval()


def check(net: nn.Module, cut: str, x: Tensor = X) -> FocusedModel:
    """An uneven area from outside gives the masked dense network, and all of it the dense one."""
    traced = trace(net, x)
    plan = make_plan(traced, traced.cut(cut))
    mask = make_mask("blob", len(x), *traced.cut(cut).grid)
    f = FocusedModel(net, FocusConfig(cut), example=x, route=False)
    close(f(x, aoi=mask), masked_forward(plan, zero_fills(plan), x, mask))
    with torch.no_grad():
        close(f(x), net(x))
    return f


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_cut_of_every_network_works(name):
    net, chosen = build(name), make_backend()
    traced = trace(net, X)
    for cut in traced.cuts:
        try:
            plan = make_plan(traced, cut, stem_on_rows=chosen.stem_on_rows)
        except FocusError as error:
            assert "no convolution" in str(error)  # noqa: PT017  # which cuts have none is not the point here
            continue
        fills, mask = zero_fills(plan), make_mask("independent", 2, *cut.grid)
        runner = Runner(plan, chosen, fills)
        close(runner.tail(runner.stem(X), mask), masked_forward(plan, fills, X, mask))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 12, (3, 5), (2, 1), (1, 2), groups=4),
        nn.Conv2d(8, 8, (1, 7), padding=(0, 3), groups=8),
        nn.Conv2d(8, 8, 5, 3, groups=8),
        nn.Conv2d(8, 6, 3, padding="same"),
        nn.Conv2d(8, 6, 3, padding="valid"),
        nn.Conv2d(8, 6, (4, 2), padding="same", dilation=(1, 3)),
        nn.Conv2d(8, 6, 1, 2, bias=False),
        nn.Conv2d(8, 6, 3, padding=3),
        nn.Conv2d(8, 6, 2),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2)),
        nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 8, 1)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_layers_of_every_geometry(layer):
    f = check(chain(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1")
    assert f.unsupported == ()


class PadFirst(nn.Module):
    def __init__(self, conv: nn.Conv2d, value: float = 0.0) -> None:
        super().__init__()
        self.conv, self.value = conv, value

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 2, 0, 1), value=self.value))


def test_padding_of_its_own_is_taken_in_where_it_is_zeros():
    tail = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 3))
    assert check(chain(PadFirst(nn.Conv2d(8, 6, 3, 2)), tail), "1").unsupported == ()
    ones = chain(nn.Conv2d(8, 8, 3), PadFirst(nn.Conv2d(8, 6, 3, 2), 1.0), tail)
    assert "pad" in check(ones, "1").unsupported[0]
    for layers in (
        (nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), tail),
        (nn.ZeroPad2d(1), nn.MaxPool2d(3), nn.Conv2d(8, 6, 1), tail),
    ):
        net = chain(nn.Conv2d(8, 8, 3), *layers)
        assert len(check(net, "1").unsupported) > 0
    hooked = chain(nn.Conv2d(8, 8, 3), nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3), tail)
    hooked[4].register_forward_hook(lambda module, inputs, output: output + 1)
    assert len(check(hooked, "1").unsupported) > 0


def test_a_layer_with_hooks_runs_as_it_is():
    net = chain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net[4].register_forward_hook(lambda module, inputs, output: 2 * output)
    f = check(net, "1")
    assert "4: Conv2d has forward hooks" in f.unsupported[0]


class Wandering(nn.Module):
    """Looks at the size of its input in Python."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return x * 2 if x.shape[2] > 5 else x


def test_a_submodule_that_fx_cannot_follow_stays_whole():
    net = chain(nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(Wandering(), nn.Conv2d(8, 4, 3, padding=1)))
    f = check(net, "1")
    assert "3.0: Wandering does not run on rows: its Python cannot be traced" in f.unsupported[0]
    assert "x.shape[2] > 5" in f.unsupported[0]


class Twice(nn.Module):
    """One layer called on two values and added: branches whose strides multiply to the same grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, act=nn.ReLU())
        self.shared, self.down = conv_bn(8, 8, 3, act=nn.ReLU()), conv_bn(8, 8, 3, 2)
        self.quarter = nn.Conv2d(8, 8, 5, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.stem(x)))
        return (self.down(self.down(x)) + self.quarter(x)).mean((2, 3))


def test_shared_modules_and_branches_of_different_strides():
    torch.manual_seed(0)
    f = check(Twice().eval(), "stem.2", torch.randn(2, 3, 32, 32))
    assert f.unsupported == ()
    mask = make_mask("independent", 2, 16, 16)
    level = Level(mask)
    two = level.through(Geometry((3, 3), (2, 2), (1, 1))).through(Geometry((3, 3), (2, 2), (1, 1)))
    assert two is level.through(Geometry((5, 5), (4, 4), (2, 2)))


class Apart(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.down(x) + F.max_pool2d(x, 3, 2, 1)[:, :, :, :] + self.shared(x)[:, :, ::2, ::2]).mean((2, 3))


def test_what_picks_positions_ends_the_region():
    torch.manual_seed(0)
    f = check(Apart().eval(), "stem.2")
    assert any("indexing along another axis" in u for u in f.unsupported)


def test_autocast_and_other_places_run_densely():
    net = build("resnet")
    f = FocusedModel(net, FocusConfig("pool"), example=X)
    mask = make_mask("blob", 2, *trace(net, X).cut("pool").grid)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.warns(RuntimeWarning, match="autocast"):
            y = f(X)
        assert torch.equal(y, net(X))
    before = f(X, aoi=mask)
    assert f.last_route == ["focused"] * 2
    f.double()
    with pytest.warns(RuntimeWarning, match="float64"):
        assert torch.equal(f(X.double()), copy.deepcopy(net).double()(X.double()).detach())
    f.float()
    torch.testing.assert_close(f(X, aoi=mask), before)
    assert f.last_route == ["focused"] * 2


def test_training_mode_is_refused():
    f = FocusedModel(build("vgg"), FocusConfig("features.1", threshold=1.0), example=X)
    f.train()
    with pytest.raises(FocusError, match=r"training mode; call \.eval"):
        f(X)


def test_mixed_routes_keep_sizes_right():
    """Sizes taken before the cut count the images of one group only."""
    net = build("segment")
    f = FocusedModel(net, FocusConfig("stem.2"), example=X)
    masks = torch.ones(3, *trace(net, X).cut("stem.2").grid, dtype=torch.bool)
    masks[1, 3:] = False
    x = torch.cat([X, X[:1]])
    y = f(x, aoi=masks)
    assert f.last_route == ["dense", "focused", "dense"]
    with torch.no_grad():
        assert torch.equal(y[[0, 2]], net(x[[0, 2]]))
    close(y[1:2], f(x[1:2], aoi=masks[1:2]))


@pytest.mark.parametrize("size", [(29, 34), (32, 31), (30, 33)])
def test_tensorflow_padding_follows_the_size_of_the_input(size):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from layerscope.sources.zoo import import_timm

    same = import_timm().layers.Conv2dSame
    torch.manual_seed(0)
    net = nn.Sequential(
        same(3, 8, 3, 2), nn.ReLU(), same(8, 8, 5, 1, groups=8), same(8, 12, 4, 2), nn.ReLU(), same(12, 8, 3, 3),
        same(8, 6, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    f = check(net, "1", torch.randn(2, 3, *size))
    assert f.unsupported == ()
    other = torch.randn(1, 3, 41, 38)
    with torch.no_grad():
        close(f(other), net(other))


def test_another_input_size_than_the_examples():
    for name in ("resnet", "shuffle", "segment"):
        net = build(name)
        f = FocusedModel(net, FocusConfig(FAMILIES[name][1]), example=X, route=False)
        other = torch.randn(1, 3, 41, 26)
        with torch.no_grad():
            close(f(other), net(other))
