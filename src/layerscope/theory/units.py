"""Sampled expectations over statistic sets: one unit's ReLU products, and the divisors that the other units decide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.kernels import kappa, normal_cdf, normal_density

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-12


class Unit:
    """ReLU products of one unit's numerators, averaged in closed form over Gaussian positions around its mean.

    A position's residual e is itself a share 1/m of sigma^2: phi / sigma averages to H - (noise^2 / (2 m sigma^2))
    E[(e^2 - 1) phi], where H = E phi and the last factor is noise * density (the second derivative of H).
    Pre-activations have no preferred sign, so every product is averaged over both.
    """

    def __init__(self, mean: Floats, a: Floats, positions: Ints, share: Floats) -> None:
        residual = np.maximum(1.0 - a, 0.0) * (positions > 1)
        self.mean, self.inner = mean, residual / positions
        self.noise2: Floats = residual - self.inner
        noise = np.sqrt(np.maximum(self.noise2, TINY))
        z = mean / noise
        self.density, self.open = normal_density(z), normal_cdf(z)
        self.relu = noise * self.density + mean * self.open
        self.drawn = 0.5 * self.noise2 * share * noise * self.density
        self.share = share

    def square(self, variance: Floats, weight: Floats) -> Floats:
        """E[w phi(x)^2]."""
        drawn = self.noise2 * self.noise2 * self.share
        return _weighted((self.mean**2 + self.noise2) / 2.0, drawn, weight, (variance + self.noise2) / 2.0)

    def elsewhere(self, variance: Floats, weight: Floats) -> Floats:
        """E[w phi(x) phi(x')] at two positions; residuals have covariance -inner (Price's theorem, second order)."""
        opens = self.open**2 + (1.0 - self.open) ** 2
        bend = self.inner**2 / np.maximum(self.noise2, TINY)
        product = self._product(self) - self.inner * opens / 2.0 + bend * self.density**2 / 2.0
        exact = _relu_product(variance + self.noise2, variance - self.inner)
        return _weighted(product, self._drawn(self), weight, exact)

    def times(self, other: Unit, variance: Floats, covariance: Floats, weight: Floats, residual: Floats) -> Floats:
        """E[w phi(x) phi(y)] with y in another unit.

        Args:
            other: that unit.
            variance: of the units' means.
            covariance: between them.
            weight: w.
            residual: covariance of the positions' residuals; it enters as a series (Mehler's, here to fourth order).
        """
        exact = _relu_product(variance + self.noise2, covariance + residual)
        product, drawn = self._product(other), self._drawn(other)
        if residual.any():
            noise2 = np.maximum(self.noise2, TINY)
            rho = np.clip(residual / noise2, -1.0, 1.0)
            opens = (self.open * other.open + (1.0 - self.open) * (1.0 - other.open)) / 2.0
            z, y, densities = self.mean / np.sqrt(noise2), other.mean / np.sqrt(noise2), self.density * other.density
            series = 0.5 + rho * z * y / 6.0 + rho**2 * (z * z - 1.0) * (y * y - 1.0) / 24.0
            product = product + residual * (opens + rho * densities * series)
            # the same e in both: at rho = 1 this is what square() takes
            both_open = opens + np.arcsin(rho) * densities
            drawn = drawn * (1.0 + rho**2) * np.sqrt(1.0 - rho**2) + 2.0 * rho * self.share * noise2**2 * both_open
        return _weighted(product, drawn, weight, exact)

    def _product(self, other: Unit) -> Floats:
        return np.asarray((self.relu * other.relu + (self.relu - self.mean) * (other.relu - other.mean)) / 2.0)

    def _drawn(self, other: Unit) -> Floats:
        mine, theirs = 2.0 * self.relu - self.mean, 2.0 * other.relu - other.mean
        return np.asarray((self.drawn * theirs + other.drawn * mine) / 2.0)


def inverse_variances(own1: Floats, own2: Floats, other1: Floats, other2: Floats) -> tuple[Floats, Floats, Floats]:
    """Means over the other units of 1/sigma^2, 1/(sigma sigma') and 1/sigma^4, for each own draw: shape [K, n].

    The product grid is the bulk of the work and needs no more than single precision.
    """
    first = _grid(own1, other1)
    np.reciprocal(first, out=first)
    inverse = first.mean(axis=2)
    fourth = np.einsum("kno,kno->kn", first, first) / first.shape[2]
    if own2 is own1:
        return inverse, inverse, fourth
    second = _grid(own2, other2)
    np.divide(first, second, out=second)
    np.sqrt(second, out=second)
    return inverse, second.mean(axis=2), fourth


def _grid(own: Floats, other: Floats) -> NDArray[np.float32]:
    grid: NDArray[np.float32] = own.astype(np.float32)[:, :, None] + other.astype(np.float32)[:, None, :]
    np.maximum(grid, np.float32(TINY), out=grid)
    return grid


def _relu_product(variance: Floats, covariance: Floats) -> Floats:
    """E phi(x) phi(y) for Gaussians."""
    return np.asarray(variance * kappa(covariance / np.maximum(variance, TINY)) / 2.0)


def _weighted(product: Floats, drawn: Floats, weight: Floats, exact: Floats) -> Floats:
    """E[w f] = E[w] E[f] + Cov(w, f) - E[w drawn]: E[f] is ``exact``, ``drawn`` is what e's share in sigma takes."""
    mean_weight = mean_over_draws(weight)
    return np.asarray(
        mean_weight * exact + mean_over_draws((weight - mean_weight) * product) - mean_over_draws(weight * drawn)
    )


def mean_over_draws(values: Floats) -> Floats:
    """Mean over draws: [K, n] to [K, 1]."""
    return np.asarray(values.mean(axis=1, keepdims=True))
