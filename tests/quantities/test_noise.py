"""The batch-noise ratio against a population where it is known."""

from __future__ import annotations

import pytest
import torch

from layerscope import quantities as q


@pytest.mark.parametrize("nu", [0.1, 1.0, 3.0])
def test_known_population(nu: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 400, 20, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 400, 20, generator=generator, dtype=torch.float64) * nu**0.5
    assert float(q.batch_noise(signal + noise)) == pytest.approx(nu, rel=0.1)


def test_unequal_views_agree_with_equal_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(300, 30, generator=generator, dtype=torch.float64)
    sample = torch.cat((torch.arange(300), torch.randint(300, (500,), generator=generator)))
    z = signal[sample] + 0.7 * torch.randn(800, 30, generator=generator, dtype=torch.float64)
    assert float(q.batch_noise_of(z, sample)) == pytest.approx(0.49, rel=0.1)


def test_exactly_zero_without_noise() -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).repeat(3, 1, 1)
    assert float(q.batch_noise(z)) == 0


def test_too_few_views() -> None:
    with pytest.raises(ValueError, match="one of them seen twice; got 3 views of 3 samples"):
        q.batch_noise_of(torch.randn(3, 2), torch.arange(3))
