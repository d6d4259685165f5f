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


def leak(side: float) -> float:
    """Mean over an H x H map of f (1 - f), with f the share of taps that meet a pixel.

    A filter of mean zero no longer has mean zero where some of its taps fall off the map, so a part f (1 - f) of its
    variance sees the mean of its input, which is the same for all samples.
    """
    h = float(side)
    if h <= 1.0:
        return (1.0 / 9.0) * (8.0 / 9.0)
    edge, inner = 2.0 / h, 1.0 - 2.0 / h
    second = (edge * (2.0 / 3.0) ** 2 + inner) ** 2
    return flat_factor(h) - second
