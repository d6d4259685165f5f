"""One normalized ReLU layer as a map of three numbers, by sampling whose cost does not depend on the set's size.

The state of a layer is what two positions and two samples have in common before the norm: ``a``, the correlation of
the pre-activations of one sample at two positions, ``b``, the correlation across two samples at one position, and
``d``, that across two samples at two positions (equal to b unless there is a border, see
:mod:`layerscope.theory.padding`); channels are independent Gaussians of unit second moment. A norm draws its
statistics from a *set* of ``units`` x ``positions``
elements: the units are the g channels of a group (GroupNorm, Instance Norm at g = 1, LayerNorm at g = C) or the B
samples of a batch (BatchNorm). One layer is then: draw a set; subtract its mean; divide by its standard deviation;
ReLU; read off the new a, b and d, and the factor on the squared gradient.

What is looked at is one *own* unit of the set; the *other* units enter sigma^2 through one chi-square each for their
means and for the spread around those (for two samples, the means' part is a 2 x 2 Wishart matrix, by Bartlett's
decomposition). So a draw needs less than ten numbers for a set of any size. Own and other parts are combined as a
product grid, which leaves no spurious correlation between them. The ReLU of the numerators alone is known exactly
(kappa), so only the small covariance between divisor and numerator is sampled. The spread of the own unit's
positions is averaged in closed form, with its own share in sigma to first order in 1/m for sets of m elements; sets of
fewer than 32 go to :mod:`layerscope.theory.small_sets`.

Squared-gradient factor of one norm-ReLU layer, for unit-second-moment input (the He convolution's 2 is the caller's):
E |J^T d|^2 / m with d = standard normal masked by the open ReLUs and J = (I - 1 1^T/m - xhat xhat^T/m) / sigma the
norm's Jacobian; its expectation over d is  E[ open (1 - 1/m - xhat^2/m) / sigma^2 ], m = units x positions.

If the sets of the next layer are the same elements of one channel (BatchNorm, Instance Norm), the gradient that comes
back from it sums to zero over the set already, and less of it is projected out: with c the mean cosine of two
features of a set, the bracket's mean is  1 - (3/2 + 1/(pi (m-1)) - c) / m  instead of  1 - 2/m
(:func:`gradient_of_centred_sets`).

Assumptions: infinite width; positions exchangeable (circular padding, data without spatial structure); the gradient
independent of the activations.

Source: the Jacobian is standard; the recursion and its sampling are derived here and tested against random networks.
Setting: Lubana, Dick & Tanaka 2021, arXiv 2106.05956.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.draws import Draws, half_plane
from layerscope.theory.kernels import kappa, normal_cdf, normal_density

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What the units of a set are: ``channels`` of one sample, or ``samples`` of one channel.
Across = Literal["channels", "samples"]

#: From this many elements on, a set counts as large.
LARGE = 32

#: Grid of the own channel's mean in two samples, and draws of the own samples' means.
OWN_GRID, OWN_DRAWS = (20, 9), 233

#: Draws of the other units. Spread over seeds after 20 layers: 0.005 in cosine, 0.002 in rate.
OTHER_DRAWS = 61

_TINY = 1e-12


@dataclass(frozen=True)
class Step:
    """What one norm-ReLU layer hands on, one entry for each configuration: shape [K, 1]."""

    q: Floats
    """Second moment of the ReLU features, for unit-second-moment input."""
    a: Floats
    """Their cosine between two positions of one sample."""
    b: Floats
    """Their cosine between two samples at one position."""
    d: Floats
    """Their cosine between two samples at two positions."""
    gain: Floats
    """Factor on the squared gradient through norm and ReLU, for unit-second-moment input."""


class Layer(Protocol):
    """Anything that maps correlations before a norm to those after norm and ReLU."""

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer, from correlations a, b and d of shape [K, 1]."""
        ...


class ChannelSets:
    """Sets of g channels x S positions of one sample: GroupNorm, LayerNorm, Instance Norm, FRN, RMSNorm.

    Args:
        units: g, shape [K].
        positions: S, shape [K].
        centred: whether the mean is subtracted, shape [K]; where not, the divisor is the root mean square.
        seed: of the draws.
    """

    def __init__(self, units: Ints, positions: Ints, centred: NDArray[np.bool_], seed: int = 0) -> None:
        self.units, self.positions = units.reshape(-1, 1), positions.reshape(-1, 1)
        self.centred = centred.reshape(-1, 1).astype(np.int64)
        other = Draws(OTHER_DRAWS, seed)
        self._mean, self._mean_new = half_plane(*OWN_GRID)
        freedom = self.units - 1 - self.centred
        self._wishart = other.chi2(freedom), other.normal() * (freedom > 0), other.chi2(freedom - 1)
        within = self.units * (self.positions - 1)
        self._within = other.chi2(within), other.chi2(within)

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer, from correlations a, b and d of shape [K, 1]."""
        g, s = self.units, self.positions
        spread = np.maximum(a + (1.0 - a) / s, _TINY)  # variance of a channel's mean over positions
        mean_b = (b + (s - 1) * d) / s
        rho = np.clip(mean_b / spread, 0.0, 1.0)
        rest = np.sqrt(1.0 - rho * rho)
        kept = 1.0 - self.centred / g

        # the own channel's mean around the group's: of the sum of squares of all means it takes g/(g-1) of its square
        root = np.sqrt(spread * kept)
        mean: Floats = root * self._mean
        mean_other: Floats = root * (rho * self._mean + rest * self._mean_new)
        share = np.where(kept > 0.0, 1.0 / np.maximum(kept, _TINY), 0.0) / g
        chi, tilt, chi_new = self._wishart
        chi_other = (rho * np.sqrt(chi) + rest * tilt) ** 2 + rest * rest * chi_new
        within = (1.0 - a) / (g * s)
        inverse, crossed, fourth = _inverse_variances(
            share * mean * mean,
            share * mean_other * mean_other,
            spread * chi / g + within * self._within[0],
            spread * chi_other / g + within * self._within[1],
        )
        m = g * s
        here, other = _Unit(mean, a, s, inverse / m), _Unit(mean_other, a, s, inverse / m)
        scale = here.square(spread * kept, inverse)
        backward = inverse * (1.0 - self.centred / m) - (mean * mean + here.noise2) * fourth / m
        a_out = np.minimum(here.elsewhere(spread * kept, inverse) / scale, 1.0)
        return Step(
            q=np.full_like(scale, 0.5),  # the mean of xhat^2 over a set is 1
            a=a_out,
            b=np.minimum(
                here.times(other, spread * kept, mean_b * kept, crossed, (b - d) * (1.0 - 1.0 / s)) / scale, 1.0
            ),
            d=np.minimum(here.times(other, spread * kept, mean_b * kept, crossed, (d - b) / s) / scale, 1.0),
            gain=_mean(backward)
            / 2.0
            * np.where((g == 1) & (self.centred == 1), gradient_of_centred_sets(m, a_out), 1.0),
        )


class SampleSets:
    """Sets of B samples x S positions of one channel: BatchNorm, and Variance Normalization where not centred.

    Args:
        units: B, shape [K].
        positions: S, shape [K].
        centred: whether the numerator loses the mean, shape [K]; the divisor is the centred deviation either way.
        seed: of the draws.
    """

    def __init__(self, units: Ints, positions: Ints, centred: NDArray[np.bool_], seed: int = 0) -> None:
        self.units, self.positions = units.reshape(-1, 1), positions.reshape(-1, 1)
        self.keeps = 1.0 - centred.reshape(-1, 1)
        own, other = Draws(OWN_DRAWS, seed), Draws(OTHER_DRAWS, seed + 1)
        self._mean, self._mean_new, self._third, self._shared = (own.normal() for _ in range(4))
        rest = np.maximum(self.units - 2, 0)
        self._others = other.chi2(rest - 1), other.chi2(self.units * (self.positions - 1))

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer, from correlations a, b and d of shape [K, 1]."""
        batch, s = self.units, self.positions
        mean_b = (b + (s - 1) * d) / s
        spread = np.maximum(
            a + (1.0 - a) / s - mean_b, 0.0
        )  # variance of a sample's mean around what all samples share
        root = np.sqrt(spread)
        pair, rest = np.where(batch > 1, 1.0, 0.0), np.maximum(batch - 2, 0)
        mean, mean_other = root * self._mean, root * self._mean_new * pair
        third = root * self._third * (rest > 0)
        mu = (mean + mean_other + np.sqrt(rest) * third) / batch
        own = (mean**2 + mean_other**2 + third**2) / batch - mu * mu
        others = (spread * self._others[0] + (1.0 - a) / s * self._others[1]) / batch
        inverse, _, fourth = _inverse_variances(own, own, others, others)

        shared = self.keeps * (mu + np.sqrt(np.maximum(mean_b, 0.0)) * self._shared)
        common = self.keeps * (mean_b + spread / batch) - spread / batch
        m = batch * s
        here, other = _Unit(mean - mu + shared, a, s, inverse / m), _Unit(mean_other - mu + shared, a, s, inverse / m)
        scale = here.square(spread + common, inverse)
        projected = (shared - (mean - mu)) * (mean - mu + shared) - here.noise2
        backward = inverse * (1.0 - (1.0 - self.keeps) / m) + projected * fourth / m
        a_out = np.minimum(here.elsewhere(spread + common, inverse) / scale, 1.0)
        b_out, d_out = (
            np.minimum(here.times(other, spread + common, common, inverse, residual) / scale, 1.0)
            for residual in ((b - d) * (1.0 - 1.0 / s), (d - b) / s)
        )
        alike = ((s - 1) * a_out + (batch - 1) * (b_out + (s - 1) * d_out)) / np.maximum(m - 1, 1)
        gain = _mean(backward) / 2.0 * np.where(self.keeps > 0.0, 1.0, gradient_of_centred_sets(m, alike))
        return Step(np.where(self.keeps > 0.0, scale, 0.5), a_out, b_out, d_out, gain)


def gradient_of_centred_sets(m: Floats | Ints | int, alike: Floats | float) -> Floats:
    """Share of a gradient that sums to zero over the set that a centring norm lets pass, over that of any gradient.

    (1 - (3/2 + 1/(pi (m-1)) - c) / m) / (1 - 2/m). Of d = open * g, with g of mean zero over the set, the projection
    on 1 has mean square 1/4 + 1/(2 pi (m-1)) and that on xhat (1 - c)/2, where both would be 1/2 for independent g.

    Args:
        m: elements of the set, at least 3.
        alike: c, mean cosine of the ReLU features of two of them.
    """
    size = np.asarray(m, dtype=np.float64)
    passed = 1.0 - (1.5 + 1.0 / (np.pi * np.maximum(size - 1.0, 1.0)) - alike) / size
    return np.asarray(passed / np.maximum(1.0 - 2.0 / size, _TINY))


class _Unit:
    """ReLU products of one unit's numerators, averaged in closed form over Gaussian positions around its mean.

    A position's residual e is itself a share 1/m of sigma^2: phi / sigma averages to H - (noise^2 / (2 m sigma^2))
    E[(e^2 - 1) phi], where H = E phi and the last factor is noise * density (the second derivative of H).
    Pre-activations have no preferred sign, so every product is averaged over both.
    """

    def __init__(self, mean: Floats, a: Floats, positions: Ints, share: Floats) -> None:
        residual = np.maximum(1.0 - a, 0.0) * (positions > 1)
        self.mean, self.inner = mean, residual / positions
        self.noise2: Floats = residual - self.inner
        noise = np.sqrt(np.maximum(self.noise2, _TINY))
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
        bend = self.inner**2 / np.maximum(self.noise2, _TINY)
        product = self._product(self) - self.inner * opens / 2.0 + bend * self.density**2 / 2.0
        exact = _relu_product(variance + self.noise2, variance - self.inner)
        return _weighted(product, self._drawn(self), weight, exact)

    def times(self, other: _Unit, variance: Floats, covariance: Floats, weight: Floats, residual: Floats) -> Floats:
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
            noise2 = np.maximum(self.noise2, _TINY)
            rho = np.clip(residual / noise2, -1.0, 1.0)
            opens = (self.open * other.open + (1.0 - self.open) * (1.0 - other.open)) / 2.0
            z, y, densities = self.mean / np.sqrt(noise2), other.mean / np.sqrt(noise2), self.density * other.density
            series = 0.5 + rho * z * y / 6.0 + rho**2 * (z * z - 1.0) * (y * y - 1.0) / 24.0
            product = product + residual * (opens + rho * densities * series)
            # the same e in both: at rho = 1 this is what square() takes
            both_open = opens + np.arcsin(rho) * densities
            drawn = drawn * (1.0 + rho**2) * np.sqrt(1.0 - rho**2) + 2.0 * rho * self.share * noise2**2 * both_open
        return _weighted(product, drawn, weight, exact)

    def _product(self, other: _Unit) -> Floats:
        return np.asarray((self.relu * other.relu + (self.relu - self.mean) * (other.relu - other.mean)) / 2.0)

    def _drawn(self, other: _Unit) -> Floats:
        mine, theirs = 2.0 * self.relu - self.mean, 2.0 * other.relu - other.mean
        return np.asarray((self.drawn * theirs + other.drawn * mine) / 2.0)


def _inverse_variances(own1: Floats, own2: Floats, other1: Floats, other2: Floats) -> tuple[Floats, Floats, Floats]:
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
    np.maximum(grid, np.float32(_TINY), out=grid)
    return grid


def _relu_product(variance: Floats, covariance: Floats) -> Floats:
    """E phi(x) phi(y) for Gaussians."""
    return np.asarray(variance * kappa(covariance / np.maximum(variance, _TINY)) / 2.0)


def _weighted(product: Floats, drawn: Floats, weight: Floats, exact: Floats) -> Floats:
    """E[w f] = E[w] E[f] + Cov(w, f) - E[w drawn]: E[f] is ``exact``, ``drawn`` is what e's share in sigma takes."""
    mean_weight = _mean(weight)
    return np.asarray(mean_weight * exact + _mean((weight - mean_weight) * product) - _mean(weight * drawn))


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(axis=1, keepdims=True))
