"""Cosines: the O(N D) form against the N x N matrix, and what it does with dead rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from layerscope import quantities as q


def brute(x: torch.Tensor) -> float:
    n = len(x)
    pairs = [
        float(functional.cosine_similarity(x[i].double(), x[j].double(), dim=0))
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    return sum(pairs) / len(pairs)


def draw(*shape: int, offset: float = 0.5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + offset


@pytest.mark.parametrize(("n", "d"), [(2, 5), (7, 3), (9, 40)])
def test_mean_cosine_equals_all_pairs(n: int, d: int) -> None:
    x = draw(n, d)
    assert float(q.mean_cosine(x)) == pytest.approx(brute(x), abs=1e-12)
    m = q.cosine_gram(x)
    assert float((m.sum() - n) / (n * (n - 1))) == pytest.approx(brute(x), abs=1e-12)


def test_bounds() -> None:
    assert float(q.mean_cosine(torch.eye(4))) == pytest.approx(0)
    assert float(q.mean_cosine(torch.ones(4, 3))) == pytest.approx(1)
    simplex = torch.eye(5) - 1 / 5
    assert float(q.mean_cosine(simplex)) == pytest.approx(-1 / 4, abs=1e-6)


def test_dead_rows_are_left_out_and_counted() -> None:
    x = draw(6, 10)
    with_dead = torch.cat((x, torch.zeros(2, 10, dtype=x.dtype)))
    assert float(q.mean_cosine(with_dead)) == pytest.approx(float(q.mean_cosine(x)), abs=1e-12)
    assert int(q.dead_rows(with_dead)) == 2
    assert q.mean_cosine(with_dead[5:]).isnan()
    m = q.cosine_gram(with_dead)
    assert m[-1].abs().sum() == 0
    torch.testing.assert_close(m.diagonal(), torch.tensor([1.0] * 6 + [0.0] * 2, dtype=m.dtype))


def test_a_nan_is_not_hidden() -> None:
    x = draw(4, 6)
    x[1, 2] = torch.nan
    assert q.mean_cosine(x).isnan()
    assert q.cosine_gram(x)[1, 1].isnan()


def test_pooled_cosine_is_the_cosine_of_the_means() -> None:
    x = draw(5, 4, 6)
    assert float(q.pooled_cosine(q.tables(x))) == pytest.approx(brute(x.mean(2)), abs=1e-12)


def test_token_cosine_is_the_mean_over_samples_of_the_cosine_over_tokens() -> None:
    x = draw(3, 5, 7)
    assert float(q.token_cosine(x)) == pytest.approx(sum(brute(s) for s in x) / 3, abs=1e-12)
    x[0] = 0
    assert float(q.token_cosine(x)) == pytest.approx((brute(x[1]) + brute(x[2])) / 2, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_scale_of_a_sample_and_order_do_not_matter(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    y = x[torch.randperm(6, generator=generator)].clone()
    y[2] *= scale
    assert float(q.mean_cosine(y)) == pytest.approx(float(q.mean_cosine(x)), abs=1e-9)
