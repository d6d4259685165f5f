"""What zero padding takes from an un-normalized convolution: the second moment that is missing at the border.

A 3 x 3 convolution on an H x H map multiplies some border pixels by nothing. He weights keep the second moment only
if all nine taps meet a pixel, so an un-normalized net loses a factor per layer; a norm puts it back and hides the loss.
The profile of second moments over one axis, p, obeys p' = T p with T = tridiag(1, 1, 1) / 3 (every stride-th row of it
at a strided layer), and both axes are alike, so layer l keeps lambda_l = (mean T p / mean p)^2. From a flat profile
that is ((3H - 2) / (3H))^2; repeated on one map it tends to the square of T's largest eigenvalue, ((1 + 2 cos(pi / (H +
1))) / 3)^2.

Source: derived here. Exact for infinitely wide ReLU nets with independent weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def flat_factor(side: float) -> float:
    """Share of taps that meet a pixel, averaged over an H x H map: ((3H - 2) / (3H))^2.

    >>> round(flat_factor(2), 3), round(flat_factor(8), 3)
    (0.444, 0.84)
    """
    return ((3.0 * side - 2.0) / (3.0 * side)) ** 2


def perron_factor(side: float) -> float:
    """The factor that a long stack on one map tends to: ((1 + 2 cos(pi / (H + 1))) / 3)^2.

    >>> round(perron_factor(2), 3), round(perron_factor(8), 3)
    (0.444, 0.921)
    """
    return ((1.0 + 2.0 * math.cos(math.pi / (side + 1.0))) / 3.0) ** 2


def kept_by_layer(sides: Sequence[int], first: int | None = None) -> tuple[float, ...]:
    """Factor on the second moment at each of a stack of zero-padded 3 x 3 convolutions.

    Args:
        sides: side H of the (square) map after each layer. Where it shrinks, the layer is strided.
        first: side of the input map; the first layer's own if not given.

    Returns:
        One factor in (0, 1] per layer.
    """
    profile = np.ones(first or sides[0])
    factors = []
    for side in sides:
        before = profile.mean()
        padded = np.pad(profile, 1)
        profile = (padded[:-2] + padded[1:-1] + padded[2:]) / 3.0
        if side != len(profile):
            stride = max(1, -(-len(profile) // side))
            profile = profile[::stride][:side]
        factors.append(float(profile.mean() / before) ** 2)
    return tuple(factors)


@dataclass(frozen=True)
class Border:
    """What the border of a zero-padded 3 x 3 convolution does, as averages over the positions of its output."""

    met: float
    """f: share of taps that meet a pixel; also what two samples keep in common at one position."""
    shared: float
    """o: the same for two different positions: taps that meet a pixel at both."""
    leak: float
    """f - f^2 per position: how much a filter of mean zero sees of its input's mean. Zero away from the border."""
    leak_apart: float
    """o - f f' for two different positions."""

    @property
    def fade(self) -> float:
        """O / f: factor by which correlations between different positions fall short of those at one position."""
        return self.shared / self.met


#: No padding, or a circular one: every tap meets a pixel.
NO_BORDER = Border(1.0, 1.0, 0.0, 0.0)


@lru_cache(maxsize=1024)
def border(side: int, before: int | None = None) -> Border:
    """The border of a convolution from a map of side ``before`` to one of ``side`` (strided if smaller).

    Correlations between two positions p and p' pass through a tap only if it meets a pixel from both. On a 2 x 2 map
    that is true of 1 tap in 9 to 2 in 9 where 4 in 9 meet one, so what different positions share fades by 0.42 per
    layer while what two samples share at *one* position does not: deep layers get a code of the position, the same
    for all samples, that no centring over positions together removes.
    """
    before = before or side
    stride = max(1, -(-before // side))
    centres = np.arange(side) * stride
    met = np.stack([(centres + k >= 0) & (centres + k < before) for k in (-1, 0, 1)], axis=1).astype(float)
    both = met @ met.T / 3.0
    own = np.diag(both)
    count = side * side
    if count == 1:
        f = float(own[0]) ** 2
        return Border(f, f, f - f * f, 0.0)
    pairs = count * (count - 1)
    f, f2 = float(own.mean()) ** 2, float((own**2).mean()) ** 2
    shared = (float(both.sum()) ** 2 - float(own.sum()) ** 2) / pairs
    products = (float(own.sum()) ** 4 - float((own**2).sum()) ** 2) / pairs
    return Border(f, shared, f - f2, shared - products)
