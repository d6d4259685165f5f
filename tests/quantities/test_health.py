"""Dead, zero and non-finite shares, saturation and spread, by counting."""

from __future__ import annotations

import pytest
import torch

from layerscope import quantities as q


def test_dead_channels_and_samples() -> None:
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    x[2] = 0
    t = q.tables(x)
    assert float(q.dead_share(t)) == 0.25
    assert int(q.dead_samples(t)) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_maps(bad: float) -> None:
    x = torch.zeros(2, 5, 3)
    x[0, 1, 2] = bad
    assert float(q.nonfinite_share(q.tables(x))) == pytest.approx(0.1)
    assert float(q.nonfinite_share(q.tables(torch.ones(2, 5, 3)))) == 0


def test_zero_and_saturation_share() -> None:
    assert float(q.zero_share(torch.tensor([0.0, 1.0, -0.0, 2.0]))) == 0.5
    assert float(q.saturation_share(torch.tensor([0.95, -0.99, 0.2, 0.0]))) == 0.5


def test_relative_spread() -> None:
    assert float(q.relative_spread(torch.ones(4, 3))) == 0
    centred = torch.tensor([[1.0], [-1.0]]).repeat(500, 1)
    assert float(q.relative_spread(centred)) == pytest.approx(1, abs=1e-3)
    assert q.relative_spread(torch.ones(1, 3)).isnan()
    with_dead = torch.cat((centred, torch.zeros_like(centred)), 1)
    assert float(q.relative_spread(with_dead)) == pytest.approx(float(q.relative_spread(centred)))
