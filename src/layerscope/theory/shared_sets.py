"""Variance Normalization's layer: sets of samples whose numerator keeps the mean, with what all samples share drawn.

The divisor is the deviation around the mean, over samples and positions. Zero padding stamps a pattern of positions on
a channel of *every* sample (see :func:`layerscope.theory.padding.border`): at the border a filter loses a side of its
taps, and three sums of taps along each axis are all that there is to lose. So the pattern has a handful of degrees of
freedom (2.6 on 2 x 2 maps, 3.8 on 4 x 4) however large the map, the batch and the width. It is part of the deviation
and stands in the numerator too, and where samples are alike it is most of the deviation, so that 1 / sigma^2 differs
several times from channel to channel. Nothing of it may be averaged apart from the rest; what the other B - 2 samples
add to the deviation may, and enters as two chi-squares.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.draws import normal_quantiles
from layerscope.theory.sets import Step
from layerscope.theory.units import TINY

Floats = NDArray[np.float64]

#: Numbers drawn for each of the vectors over positions, in sets; every set is also used with the opposite sign.
ELEMENTS = 1 << 14

#: Independent draws. Which one a layer uses follows from its input, so that the layers of a stack do not all err the
#: same way, and equal input still gives equal output.
BANKS = 8


class SharedSets:
    """Sets of B samples x S positions of one channel whose mean stays in the numerator: one configuration.

    Args:
        units: B, at least 1.
        positions: S.
        seed: of the draws.
    """

    def __init__(self, units: int, positions: int, seed: int = 0) -> None:
        self.batch, self.positions = units, positions
        self._seed = seed

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer, from correlations a, b and d of shape [1, 1]."""
        batch, s, rest = self.batch, self.positions, max(self.batch - 2, 0)
        a0, b0, d0 = (float(v[0, 0]) for v in (a, b, d))
        bank = _bank(batch, s, self._seed, int(1e6 * (a0 + b0 + d0)) % BANKS)
        mean_b = max((b0 + (s - 1) * d0) / s, 0.0)
        spread = max(a0 + (1.0 - a0) / s - mean_b, 0.0)
        shared = min(max(b0 - d0, 0.0), max(1.0 - a0, 0.0))
        noise = max(1.0 - a0 - shared, 0.0)
        one, two, others, common = bank.mean
        one, two, others = (math.sqrt(spread) * v for v in (one, two, others))
        first, second, along, pattern = bank.residual
        first, second, along = (np.float32(math.sqrt(noise)) * v for v in (first, second, along))
        pattern = np.float32(math.sqrt(shared)) * pattern

        mu = (one + two + math.sqrt(rest) * others) / batch
        between = one**2 + two**2 + others**2 + spread * bank.chi[0] - batch * mu * mu
        within = (first + pattern) ** 2 + ((second + pattern) ** 2 if batch > 1 else 0.0)
        if rest:
            within = within + along**2 + 2.0 * math.sqrt(rest) * along * pattern + rest * pattern**2
        deviation = s * between + within.sum(axis=1) + noise * bank.chi[1]
        inverse = 1.0 / np.maximum(deviation / (batch * s), TINY)

        base = math.sqrt(mean_b) * common
        scale, inside, across_in, offset = (_column(v) for v in (np.sqrt(inverse), base + one, base + two, one - mu))
        own = first + pattern
        y, z, centred = (inside + own) * scale, (across_in + second + pattern) * scale, (offset + own) * scale
        q = float((y * y).mean()) / 2.0
        within_a = across = apart = 0.0
        for _ in range(2):
            f, g = np.maximum(y, 0.0), np.maximum(z, 0.0)
            y, z = -y, -z
            same, everywhere = float((f * g).mean()), float((f.mean(axis=1) * g.mean(axis=1)).mean())
            within_a += _apart(float((f.mean(axis=1) ** 2).mean()), float((f * f).mean()), s) / 2.0
            across += same / 2.0
            apart += _apart(everywhere, same, s) / 2.0
        size = batch * s
        gain = float((scale * scale * (1.0 + (y - 2.0 * centred) * y / size)).mean()) / 2.0
        values = (q, *(min(v / q, 1.0) for v in (within_a, across, apart)), gain)
        return Step(*(np.array([[v]]) for v in values))


class _Bank:
    """One draw: two samples that are looked at, the direction in which the others agree, and what all samples share."""

    def __init__(self, units: int, positions: int, seed: tuple[int, ...]) -> None:
        generator = np.random.Generator(np.random.PCG64(seed))
        sets, rest = ELEMENTS // positions, max(units - 2, 0)
        present = np.array([1.0, float(units > 1), float(rest > 0), 1.0])
        values = generator.standard_normal((4, sets, positions))
        values[3] = values[3] @ border_pattern(positions)
        # half the bytes: nine tenths of the time goes into these
        self.residual = ((values - values.mean(axis=2, keepdims=True)) * present[:, None, None]).astype(np.float32)
        self.mean = np.stack([_spread(sets, generator) for _ in range(4)]) * present[:, None]
        self.chi = (_chi2(rest - 1, sets, generator), _chi2((rest - 1) * (positions - 1), sets, generator))


@lru_cache(maxsize=64)
def _bank(units: int, positions: int, seed: int, number: int) -> _Bank:
    return _Bank(units, positions, (seed, units, positions, number))


@lru_cache(maxsize=64)
def border_pattern(positions: int) -> Floats:
    """Symmetric root of the covariance between positions of what a zero-padded 3 x 3 filter makes of a flat map.

    Less its mean over positions, and scaled so that its trace is S - 1, as that of independent positions would be.
    """
    side = max(2, round(math.sqrt(positions)))
    places = np.arange(side)
    met = np.stack([(places + k >= 0) & (places + k < side) for k in (-1, 0, 1)], axis=1).astype(float)
    pairs = np.kron(met @ met.T, met @ met.T)
    if len(pairs) != positions:  # no square map: independent positions
        pairs = np.eye(positions)
    keep = np.eye(positions) - 1.0 / positions
    values, vectors = np.linalg.eigh(keep @ pairs @ keep)
    values = np.maximum(values, 0.0)
    values *= (positions - 1) / values.sum()
    return np.asarray((vectors * np.sqrt(values)) @ vectors.T)


def _apart(everywhere: float, same: float, positions: int) -> float:
    """Mean over pairs of different positions, from that over all pairs and that over equal ones."""
    return (positions * everywhere - same) / (positions - 1) if positions > 1 else same


def _spread(count: int, generator: np.random.Generator) -> Floats:
    """Standard normals that fill every slice of probability once, in random order."""
    return np.asarray(generator.permutation(normal_quantiles(count)), dtype=np.float64)


def _column(values: Floats) -> NDArray[np.float32]:
    return values.astype(np.float32)[:, None]


def _chi2(freedom: int, count: int, generator: np.random.Generator) -> Floats:
    return generator.chisquare(freedom, count) if freedom > 0 else np.zeros(count)
