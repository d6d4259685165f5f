"""A few real steps, and what the verdict makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import layerscope
from layerscope.errors import TrainingError
from layerscope.verdict import MicroTrain, judge, real_steps


def test_the_network_itself_is_not_touched() -> None:
    net = layerscope.net("resnet20:width=8", in_shape=(1, 8, 8))
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    seen = real_steps(net, "digits", lr=0.05, steps=4)
    assert len(seen.losses) == 4
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_divergence_is_seen_and_dated() -> None:
    net = layerscope.net("resnet20:width=8", "none", in_shape=(1, 8, 8))
    seen = real_steps(net, "digits", lr=30.0, steps=10)
    assert seen.diverged
    assert seen.diverged_at is not None


def test_learning_shows_as_a_drop() -> None:
    net = layerscope.net("resnet20:width=8", "batch", in_shape=(1, 8, 8))
    assert real_steps(net, "digits", lr=0.1, steps=15).drop > 0.1


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
    net = layerscope.net("resnet20:width=8", in_shape=(1, 8, 8))
    with pytest.raises(TrainingError, match="positive learning rate"):
        real_steps(net, "digits", lr=0.0)
    with pytest.raises(TrainingError, match="at least 2"):
        real_steps(net, "digits", lr=0.1, steps=1)


@pytest.mark.parametrize("loss", ["cross_entropy", "unlabeled", lambda out, y: out.square().mean()])
def test_real_steps_take_every_loss_that_the_probe_takes(loss: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert len(real_steps(net, "digits", lr=0.01, steps=3, batch_size=8, loss=loss).losses) == 3
