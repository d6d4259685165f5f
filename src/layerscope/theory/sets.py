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
from layerscope.theory.units import TINY, Unit, inverse_variances, mean_over_draws

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What the units of a set are: ``channels`` of one sample, or ``samples`` of one channel.
Across = Literal["channels", "samples"]

#: From this many elements on, a set counts as large.
LARGE = 32

#: Grid of the own channel's mean in two samples, and draws of the own samples' means.
OWN_GRID, OWN_DRAWS = (20, 9), 233

#: Draws of the other units. Standard deviation over seeds after 20 layers: at most 0.005 in cosine, 0.002 in rate.
OTHER_DRAWS = 61


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
        spread = np.maximum(a + (1.0 - a) / s, TINY)  # variance of a channel's mean over positions
        mean_b = (b + (s - 1) * d) / s
        rho = np.clip(mean_b / spread, 0.0, 1.0)
        rest = np.sqrt(1.0 - rho * rho)
        kept = 1.0 - self.centred / g

        # the own channel's mean around the group's: of the sum of squares of all means it takes g/(g-1) of its square
        root = np.sqrt(spread * kept)
        mean: Floats = root * self._mean
        mean_other: Floats = root * (rho * self._mean + rest * self._mean_new)
        share = np.where(kept > 0.0, 1.0 / np.maximum(kept, TINY), 0.0) / g
        chi, tilt, chi_new = self._wishart
        chi_other = (rho * np.sqrt(chi) + rest * tilt) ** 2 + rest * rest * chi_new
        within = (1.0 - a) / (g * s)
        inverse, crossed, fourth = inverse_variances(
            share * mean * mean,
            share * mean_other * mean_other,
            spread * chi / g + within * self._within[0],
            spread * chi_other / g + within * self._within[1],
        )
        m = g * s
        here, other = Unit(mean, a, s, inverse / m), Unit(mean_other, a, s, inverse / m)
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
            gain=mean_over_draws(backward)
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
        inverse, _, fourth = inverse_variances(own, own, others, others)

        shared = self.keeps * (mu + np.sqrt(np.maximum(mean_b, 0.0)) * self._shared)
        common = self.keeps * (mean_b + spread / batch) - spread / batch
        m = batch * s
        here, other = Unit(mean - mu + shared, a, s, inverse / m), Unit(mean_other - mu + shared, a, s, inverse / m)
        scale = here.square(spread + common, inverse)
        projected = (shared - (mean - mu)) * (mean - mu + shared) - here.noise2
        backward = inverse * (1.0 - (1.0 - self.keeps) / m) + projected * fourth / m
        a_out = np.minimum(here.elsewhere(spread + common, inverse) / scale, 1.0)
        b_out, d_out = (
            np.minimum(here.times(other, spread + common, common, inverse, residual) / scale, 1.0)
            for residual in ((b - d) * (1.0 - 1.0 / s), (d - b) / s)
        )
        alike = ((s - 1) * a_out + (batch - 1) * (b_out + (s - 1) * d_out)) / np.maximum(m - 1, 1)
        gain = mean_over_draws(backward) / 2.0 * np.where(self.keeps > 0.0, 1.0, gradient_of_centred_sets(m, alike))
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
    return np.asarray(passed / np.maximum(1.0 - 2.0 / size, TINY))
