"""A few real steps: against torch's own loop, on losses whose stability limit is known in closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import layerscope
from layerscope.errors import TrainingError
from layerscope.verdict import MicroTrain, judge, micro_train, stable_rate


class Parabola(nn.Module):
    """Output w for every sample; with the loss 0.5 c w^2 gradient descent is stable exactly for lr < 2/c."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), 1)


def curved(output: Tensor, y: Tensor) -> Tensor:
    return 0.5 * 4.0 * output.square().mean()


BATCH = (torch.zeros(32, 1), torch.zeros(32, dtype=torch.int64))


def test_the_stability_limit_of_a_parabola() -> None:
    found = stable_rate(Parabola(), BATCH, loss=curved, factor=1.01, low=1e-3, high=10.0, batch_size=32,
                        momentum=0.0)  # fmt: skip
    assert found.lr is not None
    assert 0.5 / 1.05 <= found.lr <= 0.51  # 2 / c = 0.5; just above it 20 steps do not yet grow beyond the limit
    assert not found.at_limit


def test_limits_that_lie_outside_the_bracket() -> None:
    momentum_free = {"loss": curved, "batch_size": 32, "momentum": 0.0}
    assert stable_rate(Parabola(), BATCH, low=1e-3, high=0.1, **momentum_free).at_limit
    assert stable_rate(Parabola(), BATCH, low=5.0, high=10.0, **momentum_free).lr is None


def test_the_network_itself_is_not_touched() -> None:
    net = layerscope.net("resnet20:width=8", in_shape=(1, 8, 8))
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    seen = micro_train(net, "digits", lr=0.05, steps=4)
    assert len(seen.losses) == 4
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_divergence_is_seen_and_dated() -> None:
    net = layerscope.net("resnet20:width=8", "none", in_shape=(1, 8, 8))
    seen = micro_train(net, "digits", lr=30.0, steps=10)
    assert seen.diverged
    assert seen.diverged_at is not None


def test_learning_shows_as_a_drop() -> None:
    net = layerscope.net("resnet20:width=8", "batch", in_shape=(1, 8, 8))
    assert micro_train(net, "digits", lr=0.1, steps=15).drop > 0.1


def test_the_verdict_sees_the_steps() -> None:
    net = layerscope.net("resnet20:width=8", "batch", in_shape=(1, 8, 8))
    profile = layerscope.profile(net, layerscope.batch("digits", 32))
    lost = MicroTrain(0.5, 10, 32, (2.3, 9.0, float("inf")), True, 2)
    flat = MicroTrain(0.5, 10, 32, (2.3, 2.4, 2.4), False, None)
    good = MicroTrain(0.5, 10, 32, (2.3, 1.4, 1.2), False, None)
    verdict = judge(profile, micro=[lost])
    assert verdict.label == "unstable"
    assert "3 real steps at learning rate 0.5" in verdict.reason
    assert "0.5" in verdict.remedies[0]
    assert judge(profile, micro=[flat]).label == "very slow"
    assert judge(profile, micro=[good]).label == judge(profile).label


def test_compare_with_real_steps() -> None:
    result = layerscope.compare("resnet20:width=8", ["batch"], "digits", batch_size=16, micro_steps=3, lr=0.05)
    assert len(result["batch"].verdict.micro) == 1
    assert len(result["batch"].verdict.micro[0].losses) == 3


def test_bad_arguments() -> None:
    with pytest.raises(TrainingError, match="positive learning rate"):
        micro_train(Parabola(), BATCH, lr=0.0)
    with pytest.raises(TrainingError, match="low < high"):
        stable_rate(Parabola(), BATCH, low=1.0, high=0.1)
