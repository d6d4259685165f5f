"""Soft ranks: the closed form of a homogeneous Gram matrix, and the definitions by singular values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope import quantities as q


def homogeneous(n: int, c: float) -> torch.Tensor:
    return torch.full((n, n), c, dtype=torch.float64).fill_diagonal_(1.0)


@pytest.mark.parametrize(("n", "c"), [(16, 0.328), (64, 0.9), (10, 0.0), (8, 1.0)])
def test_homogeneous(n: int, c: float) -> None:
    m = homogeneous(n, c)
    spectrum = q.eigenvalues(m)
    assert float(q.stable_rank(spectrum)) == pytest.approx(n / (1 + (n - 1) * c))
    assert float(q.participation_ratio(m)) == pytest.approx(n**2 / (n + n * (n - 1) * c**2))
    p = [(1 + (n - 1) * c) / n] + [(1 - c) / n] * (n - 1)
    expected = math.exp(-sum(v * math.log(v) for v in p if v > 0))
    assert float(q.effective_rank(spectrum)) == pytest.approx(expected, rel=1e-6)


def test_table_value() -> None:
    assert float(q.stable_rank(q.eigenvalues(homogeneous(16, 0.328)))) == pytest.approx(2.70, abs=0.005)


def test_centring_removes_the_common_direction() -> None:
    n, c = 12, 0.95
    centred = q.eigenvalues(q.centred_gram(homogeneous(n, c)))
    assert float(q.effective_rank(centred)) == pytest.approx(n - 1, rel=1e-6)
    x = torch.randn(7, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = x / x.norm(dim=1, keepdim=True)
    direct = torch.linalg.svdvals(u - u.mean(0)).square().flip(0)
    torch.testing.assert_close(q.eigenvalues(q.centred_gram(q.cosine_gram(x))), direct, atol=1e-12, rtol=1e-9)


def test_effective_rank_is_the_entropy_of_squared_singular_values() -> None:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = torch.linalg.svdvals(x).square()
    p = p / p.sum()
    expected = float((-(p * p.log()).sum()).exp())
    assert float(q.effective_rank(q.eigenvalues(x @ x.T))) == pytest.approx(expected)


def test_a_batch_of_matrices_and_one_with_a_nan() -> None:
    m = torch.stack((homogeneous(5, 0.2), homogeneous(5, 0.5)))
    m[1, 0, 1] = torch.nan
    ranks = q.stable_rank(q.eigenvalues(m))
    assert float(ranks[0]) == pytest.approx(5 / 1.8)
    assert ranks[1].isnan()
    assert q.stable_rank(q.eigenvalues(torch.zeros(3, 3))).isnan()


def test_batch_norm_relu_net_has_stable_rank_pi() -> None:
    torch.manual_seed(0)
    width, x = 256, torch.randn(256, 256)
    for _ in range(12):
        layer = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(layer.weight)
        x = torch.relu(nn.BatchNorm1d(width)(layer(x)))
    rank = float(q.stable_rank(q.eigenvalues(q.cosine_gram(x.detach()))))
    assert 2.8 <= rank <= 3.5
