"""What counts as a sum of two paths, and what only looks like one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import nets
from layerscope.probe import profile
from layerscope.probe.residual import is_sum_of_paths


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return nn.Linear(6, 6)(torch.randn(4, 6)).tanh()


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


def test_sums_under_a_norm_or_activation_written_out_by_hand(x: Tensor) -> None:
    layer, gamma, beta = nn.Linear(6, 6), nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
    y = x + layer(x)
    centred = y - y.mean(0)
    assert is_sum_of_paths(gamma * centred / centred.square().mean(0).sqrt() + beta)
    assert is_sum_of_paths(torch.maximum(gamma * y + beta, beta))
    assert is_sum_of_paths(gamma * y * torch.sigmoid(gamma * y) / y.var(0).sqrt() + beta)


def test_what_only_looks_like_one(x: Tensor) -> None:
    layer, beta = nn.Linear(6, 6), nn.Parameter(torch.zeros(6))
    y = layer(x)
    assert not is_sum_of_paths(y)
    assert not is_sum_of_paths(y * 2 + beta)  # an affine map by hand
    assert not is_sum_of_paths(y + beta.view(1, 6))
    assert not is_sum_of_paths(y + 1.0)
    assert not is_sum_of_paths((y - y.mean(0)) / y.std(0))
    assert not is_sum_of_paths(0.5 * (y - y.mean(0)) + 0.5 * (y - y.mean(1, keepdim=True)))
    assert not is_sum_of_paths(torch.cat([y, x]))
    assert not is_sum_of_paths(y.detach())


@pytest.mark.parametrize(
    "norm", ["none", "batch", "frn", "evonorm-s0", "evonorm-b0", "weight", "sws", "switchable", "proxy"]
)
@pytest.mark.parametrize(
    ("net", "blocks"), [("resnet20:width=8", 9), ("resnet20:width=8,preact=true", 9), ("plain", 0)]
)
def test_blocks_are_found_whatever_the_norm(norm: str, net: str, blocks: int) -> None:
    model = nets.build(net, norm, in_shape=(1, 16, 16), classes=10, seed=0)
    seen = profile(model, (torch.randn(4, 1, 16, 16), torch.arange(4)), level="light")
    residual = [r.name for r in seen.records if r.residual]
    assert len(residual) == blocks, residual


def test_blocks_without_a_name_that_says_so() -> None:
    class Thing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + F.relu(self.f(x))

    seen = profile(
        nn.Sequential(nn.Linear(8, 8), Thing(), Thing(), nn.Linear(8, 3)), (torch.randn(4, 8), torch.arange(4) % 3)
    )
    assert [r.name for r in seen.records if r.residual] == ["1", "2"]
