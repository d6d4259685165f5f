"""Networks whose noise is always on: signal and chance are told apart, and neither is taken for the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layerscope
from layerscope.probe import profile
from layerscope.quantities.draws import Draws, expected_cosine, noise_ratio


class AddNoise(nn.Module):
    """Gaussian noise of this standard deviation, in evaluation mode too."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)


class FunctionalDropout(nn.Module):
    """A mask that evaluation mode turns off, in a module whose name does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def net(middle: nn.Module, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Linear(32, 64), *([nn.BatchNorm1d(64)] if norm else []), nn.Tanh()]
    return nn.Sequential(*first, middle, nn.Linear(64, 10))


X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


class TestParts:
    def known(self, draws: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        mean = 1.0 + spread * torch.randn(200, 50, generator=g, dtype=torch.float64)
        return mean, mean + 2.0 * torch.randn(draws, 200, 50, generator=g, dtype=torch.float64)

    @pytest.mark.parametrize("draws", [2, 8])
    def test_noise_over_signal_of_a_known_mixture(self, draws: int) -> None:
        mean, z = self.known(draws, 0.5)
        want = 50 * 4.0 / float(mean.var(0).sum())
        # the signal is what is left of a mean square whose own error is sqrt(2 / (N D)) of noise / draws + signal
        error = math.sqrt(2 / (200 * 50)) * (4.0 / draws + 0.25) / 0.25
        assert noise_ratio(z) == pytest.approx(want, rel=4 * error)

    def test_the_cosine_of_expectations_is_not_that_of_single_draws(self) -> None:
        mean, z = self.known(16, 0.5)
        unit = F.normalize(mean, dim=1)
        want = float(((unit @ unit.T).sum() - 200) / (200 * 199))
        single = F.normalize(z[0], dim=1)
        raw = float(((single @ single.T).sum() - 200) / (200 * 199))
        assert want == pytest.approx(0.8, abs=0.01)
        assert raw < 0.25
        assert expected_cosine(z) == pytest.approx(want, abs=0.03)

    def test_without_noise_both_are_exact(self) -> None:
        z = torch.randn(20, 7, dtype=torch.float64)
        unit = F.normalize(z, dim=1)
        assert noise_ratio(z.expand(3, -1, -1)) == pytest.approx(0, abs=1e-12)
        want = float(((unit @ unit.T).sum() - 20) / (20 * 19))
        assert expected_cosine(z.expand(3, -1, -1)) == pytest.approx(want, abs=1e-9)

    def test_pure_noise_and_too_few_draws(self) -> None:
        g = torch.Generator().manual_seed(0)
        assert noise_ratio(torch.randn(8, 50, 40, generator=g)) > 20
        with pytest.raises(ValueError, match="at least 2 draws"):
            Draws().cosine()
        with pytest.raises(ValueError, match="at least 2 samples"):
            noise_ratio(torch.randn(2, 1, 3))


class TestProfile:
    @pytest.mark.parametrize("middle", [nn.Identity(), nn.Dropout(0.5), FunctionalDropout()])
    def test_no_noise_of_its_own_where_evaluation_mode_is_quiet(self, middle: nn.Module) -> None:
        assert profile(net(middle), X, seed=0).own_noise == 0

    @pytest.mark.parametrize("std", [0.3, 1.0])
    def test_ratio_and_cosine_are_those_of_the_expectation(self, std: float) -> None:
        model = net(AddNoise(std))
        with torch.no_grad():
            z = model[:2](X).double()
        unit = F.normalize(z, dim=1)
        found = profile(model, X, seed=0)
        assert found.own_noise == pytest.approx(64 * std**2 / float(z.var(0).sum()), rel=0.1)
        want = float(((unit @ unit.T).sum() - 64) / (64 * 63))
        assert found.readout_cosine == pytest.approx(want, abs=4 * std**2 / float(z.square().sum(1).mean()) / 8**0.5)

    def test_a_collapsed_network_does_not_look_informative(self) -> None:
        """All inputs give the same expectation: one draw has cosine near 0, the expectations have 1."""
        model = net(nn.Sequential(AddNoise(2.0)))
        with torch.no_grad():
            model[0].weight.mul_(1e-3), model[0].bias.copy_(torch.linspace(-2, 2, 64))
        found = profile(model, X, seed=0)
        assert found.readout_cosine is not None
        assert found.readout_cosine > 0.9
        verdict = layerscope.judge(found)
        axis = verdict.axis("I")
        assert axis is not None
        assert axis.level == "bad"
        assert "own noise" in verdict.reason

    def test_own_noise_is_not_batch_noise(self) -> None:
        quiet, noisy = net(nn.Identity()), net(AddNoise(1.0))
        assert profile(quiet, X, batch_size=8, batch_noise=True, seed=0).batch_noise == 0
        found = profile(noisy, X, batch_size=8, batch_noise=True, seed=0)
        assert found.batch_noise == 0
        axis = layerscope.judge(found).axis("N")
        assert axis is not None
        assert axis.level == "good"
        assert "own noise" in axis.text

    def test_beside_batch_norm_only_the_batch_counts(self) -> None:
        quiet = profile(net(nn.Identity(), norm=True), X, batch_size=4, batch_noise=True, seed=0).batch_noise
        found = profile(net(AddNoise(0.5), norm=True), X, batch_size=4, batch_noise=True, seed=0)
        noisy = found.batch_noise
        assert quiet is not None
        assert noisy is not None
        assert found.own_noise is not None
        assert min(found.own_noise, quiet) > 0.3
        assert noisy == pytest.approx(quiet, rel=0.4)  # each is uncertain by about a fifth at 64 samples

    def test_nothing_changes(self) -> None:
        model = net(AddNoise(1.0)).eval()
        state = torch.get_rng_state()
        profile(model, X, batch_size=8, batch_noise=True, seed=0)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(m.training for m in model.modules())
        assert not any(m._forward_hooks for m in model.modules())


def test_a_sampling_network_is_judged_by_what_its_inputs_decide() -> None:
    from layerscope.methods.sampling import Binarize, SamplingLinear, initialize

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), Binarize(), SamplingLinear(64, 100), SamplingLinear(100, 100), nn.Linear(100, 10)
    )
    x, y = layerscope.batch("digits", 64)
    initialize(model, x)
    found = profile(model, (x, y), batch_size=16, batch_noise=True, seed=0)
    assert found.own_noise is not None
    assert 1 < found.own_noise < 30
    assert found.batch_noise == 0
    verdict = layerscope.judge(found)
    assert verdict.label == "healthy"
    assert "own noise" in verdict.reason
