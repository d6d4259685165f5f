"""What counts as a sum of two paths, and what only looks like one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.probe.residual import is_sum_of_paths


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True).tanh()


def test_sums_of_paths(x: Tensor) -> None:
    layer, norm = nn.Linear(6, 6), nn.LayerNorm(6)
    assert is_sum_of_paths(x + layer(x))
    assert is_sum_of_paths(F.relu(x + layer(x)))
    assert is_sum_of_paths(norm(x + layer(x)))
    assert is_sum_of_paths(0.5 * (x + layer(x)))
    y = layer(x)
    y += x
    assert is_sum_of_paths(F.relu(y, inplace=True))
    assert is_sum_of_paths((x + layer(x)).reshape(2, 12))


def test_what_only_looks_like_one(x: Tensor) -> None:
    layer, beta = nn.Linear(6, 6), nn.Parameter(torch.zeros(6))
    assert not is_sum_of_paths(layer(x))
    assert not is_sum_of_paths(layer(x) * 2 + beta)  # an affine map by hand
    assert not is_sum_of_paths(layer(x) + beta.view(1, 6))
    assert not is_sum_of_paths(layer(x) + 1.0)
    assert not is_sum_of_paths(torch.cat([x, layer(x)]))
    assert not is_sum_of_paths(x.detach())
