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


@pytest.mark.parametrize("batches", [2, 4])
@pytest.mark.parametrize("exchanged", [0.25, 1.0])
def test_pairs_from_a_known_population(batches: int, exchanged: float) -> None:
    """z = signal + a mean over companions of which a share is exchanged: small nu at any share, any nu at share 1."""
    g = torch.Generator().manual_seed(3)
    shape = (batches, 64, 500)
    for nu in (0.02, 2.0) if exchanged == 1 else (0.02,):
        signal = torch.randn(*shape, generator=g, dtype=torch.float64)
        kept, old, new = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(3))
        first = signal + nu**0.5 * ((1 - exchanged) ** 0.5 * kept + exchanged**0.5 * old)
        again = signal + nu**0.5 * ((1 - exchanged) ** 0.5 * kept + exchanged**0.5 * new)
        sample = torch.arange(batches * 64).flip(0)
        found = q.batch_noise_from_pairs(first, again.flatten(0, 1).flip(0), sample, exchanged)
        assert float(found) == pytest.approx(nu, rel=0.06)


def test_share_exchanged_is_the_variance_of_a_difference_of_means() -> None:
    """e against brute force: half the variance of the difference of two batch means, over (B - 1) / B^2."""
    g = torch.Generator().manual_seed(4)
    values = torch.randn(200_000, 12, generator=g, dtype=torch.float64)
    for batch in ([0, 1, 6, 7, 8, 9], [0, 1, 2], [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 10, 11], [2, 4, 4, 5]):
        index = torch.tensor(batch)
        shares = q.share_exchanged(index, 6, 2)
        for i, share in zip(index, shares, strict=True):
            mean = values[:, int(i) // 6 * 6 :][:, :6].mean(1)
            spread = (values[:, index].mean(1) - mean).var() / 2
            assert float(share) == pytest.approx(float(spread) / (5 / 36), rel=0.02)


def test_pairs_of_a_network_that_does_not_look_at_the_batch() -> None:
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5))
    assert float(q.batch_noise_from_pairs(z, z.flatten(0, 1)[2:6], torch.arange(2, 6), 0.5)) == 0


def test_no_second_look() -> None:
    with pytest.raises(ValueError, match="a second look with other companions"):
        q.batch_noise_from_pairs(torch.randn(1, 4, 3), torch.randn(0, 3), torch.arange(0), 0.5)
