"""Signal and noise of a sampling layer, against what is known of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope.methods.sampling import SamplingError, SamplingLinear, deterministic, firing_probability, observe


def layer(beta):
    torch.manual_seed(0)
    unit = SamplingLinear(64, 40, bias=False)
    nn.init.constant_(unit.beta, beta)
    return unit


X = torch.where(torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) > 0, 1.0, -1.0)


@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
def test_signal_share_is_that_of_the_firing_probabilities(beta):
    unit = layer(beta)
    (report,) = observe(unit, X, draws=8)
    mean = 2 * firing_probability(unit.pre_activation(X).double()).detach() - 1
    want = float(mean.var(0).mean() / (mean.var(0) + (1 - mean.square()).mean(0)).mean())
    assert report.signal_share == pytest.approx(want, abs=0.01)
    p = unit.pre_activation(X).detach()
    assert report.p_std == pytest.approx(float(p.std(0).mean()), rel=1e-5)
    assert report.saturated_share == pytest.approx(float((p.abs() > 2.5).double().mean()), abs=1e-6)


def test_few_draws_do_not_bias_the_share():
    unit = layer(0.2)
    mean = 2 * firing_probability(unit.pre_activation(X).double()).detach() - 1
    want = float(mean.var(0).mean() / (mean.var(0) + (1 - mean.square()).mean(0)).mean())
    shares = torch.tensor([observe(unit, X, draws=2, seed=s)[0].signal_share for s in range(40)])
    assert abs(float(shares.mean()) - want) < 4 * float(shares.std()) / 40**0.5
    assert want < 0.05  # the noise left in the mean of two draws is ten times that


def test_without_noise_everything_is_signal_and_later_layers_hear_less():
    net = nn.Sequential(layer(0.7), SamplingLinear(40, 30))
    with deterministic(net, "sign"):
        assert observe(net, X)[0].signal_share == pytest.approx(1)
    first, second = observe(net, X)
    assert (first.path, second.path) == ("0", "1")
    assert second.signal_share < first.signal_share


def test_nothing_changes_and_bad_input():
    net = nn.Sequential(layer(0.7)).train()
    state = torch.get_rng_state()
    observe(net, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert not net[0]._forward_hooks
    with pytest.raises(SamplingError, match="at least 2 inputs and 2 draws"):
        observe(net, X[:1])
