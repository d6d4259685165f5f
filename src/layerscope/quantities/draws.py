"""Networks that draw random numbers themselves: what of a representation is the input, and what is chance.

With z_d(x) the representation in draw d and m(x) = E z(x), noise is E_x |z - m|^2 and signal the variance of m over x.
Noise that is independent between samples makes their cosine small by itself, so that a collapsed network would look
informative; the cosine between the expectations m does not have that flaw.
"""

from __future__ import annotations

from torch import Tensor


class Draws:
    """Running sums over draws of [N, D] representations of the same N samples; keeps two tensors, no draw."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, z: Tensor) -> None:
        """One more draw, [N, ...]."""
        z = z.detach().flatten(1).double()
        square = z.square().sum(1)
        self._sum = z if self._sum is None else self._sum + z
        self._squares = square if self._squares is None else self._squares + square
        self.count += 1

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Mean over draws [N, D], and the unbiased variance over draws summed over features, [N]."""
        if self.count < 2 or self._sum is None or self._squares is None:
            raise ValueError(f"parting signal from noise takes at least 2 draws, got {self.count}")
        mean = self._sum / self.count
        noise = (self._squares / self.count - mean.square().sum(1)).clamp_min(0) * self.count / (self.count - 1)
        return mean, noise

    def noise(self) -> float:
        """Variance over draws, summed over features, mean over samples; unbiased.

        Raises:
            ValueError: fewer than two draws.
        """
        return float(self._parts()[1].mean())

    def noise_ratio(self) -> float:
        """Noise over signal: 0 without noise, infinite where samples do not differ in expectation.

        Unbiased parts: the noise that is left in the mean over draws is taken off the signal.

        Raises:
            ValueError: fewer than two draws or samples.
        """
        mean, noise = self._parts()
        if len(mean) < 2:
            raise ValueError("parting signal from noise takes at least 2 samples")
        within = noise.mean()
        signal = (mean.var(0).sum() - within / self.count).clamp_min(0)
        return 0.0 if float(within) == 0 else float(within / signal)

    def cosine(self) -> float:
        """Mean cosine between the expectations of different samples, with the noise left in their lengths taken off.

        NaN where fewer than two samples have an expectation that stands out of the noise.
        """
        mean, noise = self._parts()
        length = mean.square().sum(1) - noise / self.count
        alive = length > 0
        unit = mean[alive] / length[alive].sqrt()[:, None]
        n = len(unit)
        if n < 2:
            return float("nan")
        own = (unit.square().sum(1)).sum()
        pairs = float((unit.sum(0).square().sum() - own) / (n * (n - 1)))
        return max(-1.0, min(1.0, pairs))


def draws_of(z: Tensor) -> Draws:
    """Representations [D, N, ...] of D draws as :class:`Draws`."""
    found = Draws()
    for one in z:
        found.add(one)
    return found


def noise_ratio(z: Tensor) -> float:
    """:meth:`Draws.noise_ratio` of representations [D, N, ...]."""
    return draws_of(z).noise_ratio()


def expected_cosine(z: Tensor) -> float:
    """:meth:`Draws.cosine` of representations [D, N, ...]."""
    return draws_of(z).cosine()
