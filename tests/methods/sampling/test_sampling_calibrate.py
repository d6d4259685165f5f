"""Data-dependent initialization puts every unit where it was asked to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope.methods.sampling import Binarize, SamplingConv2d, SamplingError, SamplingLinear, initialize


def net():
    torch.manual_seed(0)
    conv = SamplingConv2d(1, 6, 3, padding=1, noise="gaussian")
    dense = [nn.MaxPool2d(2), nn.Flatten(), SamplingLinear(6 * 16, 20), nn.Linear(20, 3)]
    return nn.Sequential(Binarize(), conv, *dense)


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_first_layer_has_exactly_the_target(target):
    model, x = net(), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    initialize(model, x, target)
    p = model[1].pre_activation(model[0](x)).detach()
    torch.testing.assert_close(p.std((0, 2, 3), correction=0), torch.full((6,), target), rtol=0.03, atol=0)
    assert float(p.mean((0, 2, 3)).abs().max()) < 0.03  # c acts a little more strongly at the border


def test_the_next_layer_is_calibrated_on_what_the_first_one_samples():
    model, x = net(), torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    initialize(model, x)
    p = model[4].pre_activation(model[:4](x)).detach()
    # a std from n nearly normal values has the relative error 1 / sqrt(2 n), and both sides are such a std: the one
    # that was divided by came from other samples of the noise. Largest of 20 units: 4 standard errors.
    torch.testing.assert_close(p.std(0), torch.full((20,), 0.7), rtol=4 * math.sqrt(2 / (2 * len(x))), atol=0)


def test_nothing_else_changes():
    model, x = net(), torch.randn(16, 1, 8, 8)
    model[2].eval()
    weight, state = model[1].weight.clone(), torch.get_rng_state()
    initialize(model, x)
    assert torch.equal(model[1].weight, weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, True, False, True, True, True]
    assert not model[1]._forward_pre_hooks


def test_same_seed_same_result():
    x = torch.randn(16, 1, 8, 8)
    a, b = net(), net()
    initialize(a, x, seed=1), initialize(b, x, seed=1)
    assert torch.equal(a[4].beta, b[4].beta)


def test_bad_input():
    with pytest.raises(SamplingError, match="positive"):
        initialize(net(), torch.randn(2, 1, 8, 8), target=0)

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = SamplingLinear(16, 8), SamplingLinear(16, 8)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(SamplingError, match="does not pass through 'unused'"):
        initialize(Skips(), torch.ones(4, 16))
