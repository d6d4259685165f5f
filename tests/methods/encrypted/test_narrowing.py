"""Fewer channels: what must not change does not, what hangs together goes together, and the formula is the best fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.narrowing import narrow, widths
from layerscope.methods.encrypted.trace import trace
from methods.encrypted.example_nets import NETS, made


def out(graph, x: Tensor) -> Tensor:
    return graph.run(x.double())[-1].flatten(1)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Twins(nn.Module):
    """Every channel stands there twice, scaled: half of them can go without a trace."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
            self.head = nn.Linear(6 * 4, 3)
            with torch.no_grad():
                for conv in (self.first, self.second):
                    half = len(conv.weight) // 2
                    conv.weight[half:], conv.bias[half:] = 2 * conv.weight[:half], 2 * conv.bias[:half]

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.first(x)), 2)
        return self.head(torch.relu(self.second(x)).flatten(1))


def test_channels_that_repeat_others_go_without_a_trace():
    """Their twins take over exactly: the correction is a regression, and here it has no residual."""
    x = images(64, 2, 8, 8)
    net = Twins().eval()
    graph = trace(net, (2, 8, 8))
    less = narrow(graph, x, 0.5)
    assert widths(graph, less) == (("first", 4, 8), ("second", 3, 6))
    fresh = images(16, 2, 8, 8, seed=1)
    assert torch.allclose(out(less, fresh), net(fresh).double(), atol=2e-4)


def test_the_correction_is_the_least_squares_fit():
    """One channel goes from a linear layer: no other weights on those that stay do better on the calibration data."""
    x = images(400, 6)
    mix = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(mix.T)
    graph = trace(net, (6,))
    less = narrow(graph, x, 0.8)
    assert [(stay, of) for _, stay, of in widths(graph, less)] == [(4, 5)]
    hidden = torch.relu(x.double() @ net[0].weight.T.double() + net[0].bias.double()).detach()
    target = net(x).double().detach()
    errors = []
    for gone in range(5):  # every channel in turn, with the best affine fit of the others
        rest = torch.cat([hidden[:, [i for i in range(5) if i != gone]], torch.ones(400, 1).double()], 1)
        fit = rest @ torch.linalg.lstsq(rest, target).solution
        errors.append(float((fit - target).square().sum()))
    found = float((out(less, x) - target).square().sum())
    assert found == pytest.approx(min(errors), rel=1e-3)


@pytest.mark.parametrize("name", list(NETS))
def test_narrower_nets_run_quantise_and_agree_with_gates(name):
    net, x = made(name)
    graph = trace(net, NETS[name][1])
    less = narrow(net, x, 0.6)
    out(less, x)
    assert widths(graph, less)
    assert she.cost(less).bootstraps < she.cost(graph).bootstraps
    qnet = she.quantize(less, x, bits=3, act_bits=3)
    codes = qnet.encode(x[:20], clip=True)
    gates = torch.as_tensor(she.CircuitNet(qnet.graph).run(codes.numpy()))
    assert torch.equal(gates.reshape(20, -1), qnet.integers(codes).reshape(20, -1))


class Tied(nn.Module):
    """Residual sum, groups, depthwise with two outputs a channel, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.deep, self.point = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(24, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.branch(x))
        x = torch.cat([torch.relu(self.deep(x)), x], 1)
        return self.head(torch.relu(self.point(x)).mean((2, 3)))


def test_what_hangs_together_goes_together():
    torch.manual_seed(0)
    net, x = Tied().eval(), images(64, 1, 8, 8)
    graph = trace(net, (1, 8, 8))
    for keep in (0.9, 0.7, 0.4, 0.05):
        less = narrow(graph, x, keep)
        shapes = {s.name: s for s in less.steps}
        stem, branch, deep = shapes["stem"].shape[0], shapes["branch"].shape[0], shapes["deep"]
        assert stem == branch >= 2  # the sum needs the same, the groups an even number of them
        assert stem % 2 == 0
        assert deep.shape[0] == 2 * stem
        assert deep.groups == stem
        assert shapes["point"].weight.shape[1] == 3 * stem
        assert out(less, x).isfinite().all()


def test_dead_channels_go_first_and_cost_nothing():
    torch.manual_seed(0)
    net, x = Tied().eval(), images(64, 1, 8, 8)
    with torch.no_grad():
        net.point.bias[:3] = -100.0  # never fire
    graph = trace(net, (1, 8, 8))
    less = narrow(graph, x, 0.975)
    assert widths(graph, less) == (("point", 5, 6),)
    assert torch.allclose(out(less, x), net(x).double(), atol=1e-5)


def test_no_layer_pays_for_all():
    """However unequal the worth, every convolution keeps three quarters of the share that is kept overall."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )
    with torch.no_grad():
        net[5].weight[:, 16:] *= 1e-3  # fifteen channels of the second layer hardly matter
    less = narrow(net.eval(), images(64, 1, 8, 8), 0.6)
    assert all(stay >= 0.45 * of for _, stay, of in widths(trace(net, (1, 8, 8)), less))


def test_one_keeps_everything_and_nothing_is_changed():
    net, x = made("residual")
    graph = trace(net, (1, 10, 10))
    before = [None if s.weight is None else s.weight.clone() for s in graph.steps]
    assert narrow(graph, x, 1) is graph
    narrow(graph, x, 0.3)
    for step, weight in zip(graph.steps, before, strict=True):
        assert weight is None or torch.equal(step.weight, weight)
    assert narrow(graph, None, 0.5).steps[0].shape == (1, 10, 10)


def test_bad_input_is_named():
    net, x = made("residual")
    for keep in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(she.QuantizationError, match="share of the lookups"):
            narrow(net, x, keep)
    with pytest.raises(she.QuantizationError, match="calibration"):
        narrow(net, None, 0.5)
    with pytest.raises(she.UnsupportedModuleError, match="training mode"):
        narrow(net.train(), x, 0.5)
    net.eval()
    with pytest.raises(she.UnsupportedModuleError):
        narrow(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Conv2d(2, 2, 3)).eval(), x, 0.5)
    with pytest.raises(she.QuantizationError, match="calibration"):
        narrow(net, x[:0], 0.5)
    with pytest.raises(she.QuantizationError, match="calibration"):
        narrow(trace(net, (1, 10, 10)), torch.full_like(x, float("nan")), 0.5)
