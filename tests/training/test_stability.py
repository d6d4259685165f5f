"""The largest stable learning rate, against the closed form for a quadratic and on real networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope import nets
from layerscope.errors import TrainingError
from layerscope.training import largest_stable_lr

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.5])


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1, bias=False)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_quadratic_is_stable_up_to_its_curvature(momentum: float) -> None:
    """Gradient descent with momentum on a quadratic is stable below 2 (1 + momentum) / largest eigenvalue."""
    curvature = torch.linalg.eigvalsh(2 * X.T @ X / len(X)).max().item()
    expected = 2 * (1 + momentum) / curvature
    found = largest_stable_lr(
        line(), [(X, X @ torch.ones(3, 1))], steps=100, loss="mse", momentum=momentum, precision=1.05
    )
    assert found.lr == pytest.approx(expected, rel=0.06)
    assert found.best_lr < found.lr
    assert not found.at_edge


def test_the_network_is_left_as_it_was_and_every_run_is_told() -> None:
    net = line()
    before = net.weight.detach().clone()
    found = largest_stable_lr(net, [(X, X @ torch.ones(3, 1))], loss="mse")
    assert torch.equal(net.weight, before)
    rates = [trial.lr for trial in found.trials]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(16)
    assert all(math.isinf(trial.loss) == trial.diverged for trial in found.trials)
    first_bad = next(trial.lr for trial in found.trials if trial.lr > found.lr)
    assert first_bad / found.lr <= 1.2 + 1e-9


def test_the_edge_of_the_range_is_told() -> None:
    found = largest_stable_lr(line(), [(X, X @ torch.ones(3, 1))], loss="mse", low=1e-4, high=1e-3)
    assert found.at_edge
    assert found.lr == pytest.approx(1e-3)


def test_nothing_to_learn() -> None:
    found = largest_stable_lr(line(), [(X, X @ line().weight.detach().T)], loss="mse")
    assert found.lr is None
    assert found.best_lr is None


def test_an_exploding_residual_net_bears_less_than_a_normalized_one() -> None:
    limits = {
        norm: largest_stable_lr(
            nets.build("resnet:blocks=3,width=4", norm, in_shape=(1, 8, 8)),
            "digits",
            batch_size=32,
            steps=12,
            precision=2.0,
        )
        for norm in ("batch", "none")
    }
    assert limits["none"].reference == pytest.approx(math.log(10))
    assert limits["batch"].lr > 2 * limits["none"].lr


@pytest.mark.parametrize(
    "arguments", [{"low": 0.0}, {"low": 2.0, "high": 1.0}, {"precision": 1.0}, {"high": float("inf")}]
)
def test_ranges_that_are_none(arguments: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match="expected 0 < low < high"):
        largest_stable_lr(line(), [(X, X[:, :1])], loss="mse", **arguments)
