"""Training on inputs counted from their mean: the same law before, during and after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from layerscope.methods.sampling import (
    SamplingConv2d,
    SamplingError,
    SamplingLayer,
    SamplingLinear,
    centred,
    export,
    seeded,
    using_mode,
)


def signs(*shape, share=0.8):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share).float() * 2 - 1


CASES = {
    "linear": (lambda: SamplingLinear(12, 5, noise="gaussian"), (30, 12)),
    "linear, more axes": (lambda: SamplingLinear(12, 5, noise="gaussian"), (6, 7, 12)),
    "conv": (lambda: SamplingConv2d(4, 6, 3, noise="gaussian"), (9, 4, 5, 5)),
    "grouped, border": (lambda: SamplingConv2d(4, 6, 3, groups=2, padding=1, noise="gaussian"), (9, 4, 5, 4)),
    "exact": (lambda: SamplingConv2d(4, 6, 3, variance="exact", padding=1, noise="gaussian"), (9, 4, 5, 5)),
}


@pytest.mark.parametrize("name", CASES)
class TestLaw:
    def made(self, name):
        torch.manual_seed(0)
        make, shape = CASES[name]
        layer = make().double()
        nn.init.uniform_(layer.beta, 0.4, 0.9), nn.init.uniform_(layer.c, -0.3, 0.3)
        return layer, signs(*shape).double()

    def test_is_the_same_on_entering_and_on_leaving(self, name):
        layer, z = self.made(name)
        before = layer.pre_activation(z)
        with centred(layer):
            layer(z)
            torch.testing.assert_close(layer.pre_activation(z), before)
            with torch.no_grad():
                layer.weight.add_(0.2), layer.beta.mul_(1.5), layer.c.add_(0.1)
            layer(-z)
            layer.eval()  # the mean rests
            inside = layer.pre_activation(z)
            device = export(layer)
            for mode in ("connection", "unit"):
                with using_mode(layer, mode), seeded(layer, 0):
                    layer(z)
        assert layer.centre is None
        assert sorted(layer.state_dict()) == ["beta", "c", "weight"]
        torch.testing.assert_close(layer.pre_activation(z), inside)
        torch.testing.assert_close(export(layer)[0].biases, device[0].biases)

    def test_the_direction_is_trained_on_what_differs_between_inputs(self, name):
        """Away from borders and with variance norm: the gradient of w is that of an input without its mean."""
        layer, z = self.made(name)
        if layer.variance != "norm":
            return
        twin = copy.deepcopy(layer)
        with using_mode(layer, "mean"), centred(layer):
            layer(z)
            out = layer(z)
            out.square().sum().backward()
        axes = tuple(a for a in range(z.ndim) if a != (1 if z.ndim == 4 else z.ndim - 1))
        c = twin.c + twin.pull(z.mean(axes)).detach()
        twin.c = nn.Parameter(c.detach())
        with using_mode(twin, "mean"):
            want = twin(z - z.mean(axes, keepdim=True))
            torch.testing.assert_close(want, out)
            want.square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


def test_what_is_common_to_all_inputs_gives_the_direction_no_gradient():
    layer = SamplingLinear(12, 5, noise="gaussian", mode="mean").double()
    z = torch.ones(8, 12, dtype=torch.float64)
    with centred(layer):
        layer(z)
        layer(z).sum().backward()
        assert float(layer.weight.grad.abs().max()) < 1e-13
        assert (layer.c.grad > 0).all()


def test_the_mean_runs_in_training_and_rests_in_evaluation():
    layer = SamplingLinear(12, 5, noise="gaussian")
    ones = torch.ones(8, 12)
    with centred(layer, momentum=0.25):
        layer(ones)
        assert "centre" in layer.state_dict()
        layer(-ones)
        torch.testing.assert_close(layer.centre, torch.full((12,), 0.5))
        layer.eval()(ones)
        torch.testing.assert_close(layer.centre, torch.full((12,), 0.5))
        total = layer.train()(ones).sum() + layer(-ones).sum()  # the mean moves between forward and backward
        total.backward()


def test_a_layer_that_never_ran_and_one_without_bias_are_left_alone():
    net = nn.Sequential(SamplingLinear(12, 16, bias=False), SamplingLinear(16, 4))
    with centred(net):
        net[0](torch.ones(3, 12))
        assert net[0].centre is None
    assert net[1].centre is None
    assert not net[1]._forward_pre_hooks


def test_bad_input():
    layer = SamplingLinear(12, 5, noise="gaussian")
    with pytest.raises(SamplingError, match="momentum"), centred(layer, 0):
        pass
    with pytest.raises(SamplingError, match="no sampling layer"), centred(nn.Linear(2, 2)):
        pass
    located = SamplingConv2d(4, 4, 3, beta_shape="location", out_size=(3, 3))
    with pytest.raises(SamplingError, match="one magnitude per location"), centred(located):
        pass
    with centred(layer):
        layer(torch.ones(3, 12))
        with pytest.raises(SamplingError, match="already"), centred(layer):
            pass
    assert layer.centre is None


def test_the_base_class_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        SamplingLayer()
