"""Gradient summaries: rates, ratios and the invariance of the scaled gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from layerscope import quantities as q


def test_rate_is_the_geometric_mean_growth_toward_the_input() -> None:
    norms = [1.2**i for i in range(10)][::-1]
    assert q.backward_rate(norms) == pytest.approx(1.2)
    assert q.first_last_ratio(norms) == pytest.approx(1.2**9)


@pytest.mark.parametrize("norms", [[], [1.0], [math.nan, 1.0], [1.0, math.inf], [0.0, 0.0]])
def test_no_rate_without_two_usable_ends(norms: list[float]) -> None:
    assert math.isnan(q.backward_rate(norms))


def test_zero_at_the_last_layer() -> None:
    assert q.first_last_ratio([1.0, 0.0]) == math.inf


def test_comparable_gradient_takes_the_batch_size_out() -> None:
    torch.manual_seed(0)
    u = torch.randn(4096, 10, requires_grad=True)
    y = torch.randint(10, (4096,))
    values = []
    for n in (64, 4096):
        (grad,) = torch.autograd.grad(functional.cross_entropy(u[:n], y[:n]), u)
        values.append(q.comparable_gradient(float(grad.norm()), n))
    assert values[0] == pytest.approx(values[1], rel=0.1)


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_scaled_gradient_does_not_see_a_rescaling_that_the_function_does_not_see(factor: float) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 4, 3, dtype=torch.float64), nn.GroupNorm(2, 4, eps=0, dtype=torch.float64)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    nn.init.zeros_(conv.bias)

    def measure(scale: float) -> tuple[float, float]:
        u = conv(scale * x)
        (grad,) = torch.autograd.grad(norm(u).relu().square().sum() + norm(u).tanh().sum(), u)
        return float(grad.norm()), float(u.detach().square().mean().sqrt())

    (raw, rms), (raw_after, rms_after) = measure(1), measure(factor)
    assert raw_after == pytest.approx(raw / factor)
    assert q.scaled_gradient(raw_after, rms_after) == pytest.approx(q.scaled_gradient(raw, rms))
