"""The same map as :mod:`layerscope.theory.sets` for statistic sets of a few elements: every element is drawn.

Below 16 elements (Instance Norm on 2 x 2 maps, BatchNorm at batch size 4 without positions) the fluctuation of sigma is
the whole story, and nothing may be averaged in closed form. It is cheap to be exact here. Standard deviation over seeds
after 20 layers: at most 0.02 in cosine, 0.005 in rate.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.sets import Across, Step, gradient_of_centred_sets

Floats = NDArray[np.float64]

#: Elements drawn for each configuration, in sets; every set is also used with the opposite sign.
ELEMENTS = 1 << 16


class SmallSets:
    """Sets of ``units`` x ``positions`` elements of one configuration, drawn once and used at every layer.

    Args:
        across: whether the units are channels of one sample or samples of one channel.
        units: g or B.
        positions: S.
        centred: as in :class:`layerscope.theory.sets.ChannelSets` and :class:`layerscope.theory.sets.SampleSets`.
        seed: of the draws.
    """

    def __init__(self, across: Across, units: int, positions: int, centred: bool, seed: int = 0) -> None:
        generator = np.random.Generator(np.random.PCG64((seed, units, positions)))
        sets = ELEMENTS // (units * positions)
        values = generator.standard_normal((2, sets, units, positions))
        mean = values.mean(axis=3, keepdims=True)
        self._residual, self._mean = values - mean, mean * np.sqrt(positions)
        self._shared = generator.standard_normal((sets, 1, 1))
        self.across, self.centred = across, centred
        self.units, self.positions, self.size = units, positions, units * positions

    def step(self, a: Floats, b: Floats, d: Floats) -> Step:
        """One layer, from correlations a, b and d of shape [1, 1]."""
        state = float(a[0, 0]), float(b[0, 0]), float(d[0, 0])
        return self._channels(*state) if self.across == "channels" else self._samples(*state)

    def _parts(self, a: float, b: float, d: float) -> tuple[float, float, float, float]:
        """Variance of a unit's mean and covariance of two samples' means; scale and correlation of the residuals."""
        spread = max(a + (1.0 - a) / self.positions, 1e-12)
        left = max(1.0 - a, 0.0)
        return (
            spread,
            (b + (self.positions - 1) * d) / self.positions,
            math.sqrt(left),
            min((b - d) / max(left, 1e-12), 1.0),
        )

    def _channels(self, a: float, b: float, d: float) -> Step:
        spread, mean_b, noise, alike = self._parts(a, b, d)
        rho = min(max(mean_b / spread, 0.0), 1.0)
        means = np.stack([self._mean[0], rho * self._mean[0] + math.sqrt(1.0 - rho * rho) * self._mean[1]])
        rest = math.sqrt(1.0 - alike * alike)
        residuals = np.stack([self._residual[0], alike * self._residual[0] + rest * self._residual[1]])
        x = math.sqrt(spread) * means + noise * residuals
        if self.centred:
            x = x - x.mean(axis=(2, 3), keepdims=True)
        inverse2 = 1.0 / np.maximum((x * x).mean(axis=(2, 3), keepdims=True), 1e-12)
        x = x * np.sqrt(inverse2)
        within = across = apart = 0.0
        for sign in (1.0, -1.0):
            relu = np.maximum(sign * x, 0.0)
            within += _pairs(relu) / 2.0
            same = float((relu[0] * relu[1]).mean())
            everywhere = float((relu[0].mean(axis=2) * relu[1].mean(axis=2)).mean())
            across += same / 2.0
            apart += self._without(everywhere, same) / 2.0
        lost = 2.0 if self.centred else 1.0
        scale = self._mean_inverse(inverse2, 1.0 - a if self.centred and self.units == 1 else None)
        if self.centred and self.units == 1 and self.size > 2:
            scale *= float(gradient_of_centred_sets(self.size, within / 0.5))
        return _step(0.5, within, across, apart, scale * (1.0 - lost / self.size) / 2.0)

    def _samples(self, a: float, b: float, d: float) -> Step:
        spread, mean_b, noise, alike = self._parts(a, b, d)
        alike = max(alike, 0.0)
        common = self._residual[1][:, :1]  # what all samples have at one position
        residual = math.sqrt(alike) * common + math.sqrt(1.0 - alike) * self._residual[0]
        x = math.sqrt(max(spread - mean_b, 0.0)) * self._mean[0] + noise * residual
        mu = x.mean(axis=(1, 2), keepdims=True)
        centred = x - mu
        inverse2 = 1.0 / np.maximum((centred * centred).mean(axis=(1, 2), keepdims=True), 1e-12)
        y = centred if self.centred else x + np.sqrt(max(mean_b, 0.0)) * self._shared
        centred, y = centred * np.sqrt(inverse2), y * np.sqrt(inverse2)
        pairs = self.units * max(self.units - 1, 1)
        within = across = apart = 0.0
        for sign in (1.0, -1.0):
            relu = np.maximum(sign * y, 0.0)
            within += _pairs(relu) / 2.0
            same = float((relu.sum(axis=1) ** 2 - (relu**2).sum(axis=1)).mean()) / pairs
            means = relu.mean(axis=2)
            everywhere = float((means.sum(axis=1) ** 2 - (means**2).sum(axis=1)).mean()) / pairs
            across += same / 2.0
            apart += self._without(everywhere, same) / 2.0
        if self.centred:
            scale = self._mean_inverse(inverse2, 1.0 - b if self.positions == 1 else None)
            if self.size > 2:
                others = (self.units - 1) * (across + (self.positions - 1) * apart)
                alike = ((self.positions - 1) * within + others) / (self.size - 1) / 0.5
                scale *= float(gradient_of_centred_sets(self.size, alike))
            return _step(0.5, within, across, apart, scale * (1.0 - 2.0 / self.size) / 2.0)
        gain = float((inverse2 * (1.0 + (y - 2.0 * centred) * y / self.size)).mean()) / 2.0
        return _step(float((y * y).mean()) / 2.0, within, across, apart, gain)

    def _without(self, everywhere: float, same: float) -> float:
        """Mean over pairs of different positions, from that over all pairs and that over equal ones."""
        s = self.positions
        return (s * everywhere - same) / (s - 1) if s > 1 else same

    def _mean_inverse(self, inverse2: Floats, variance: float | None) -> float:
        """E 1/sigma^2; in closed form, m / ((m - 3) variance), where all elements are exchangeable."""
        if variance is None:
            return float(inverse2.mean())
        return float(self.size / ((self.size - 3.0) * max(variance, 1e-12))) if self.size > 3 else math.inf


def _pairs(relu: Floats) -> float:
    """E f(p) f(p') over different positions of one unit; 0 where there is only one."""
    positions = relu.shape[-1]
    if positions == 1:
        return 0.0
    both = relu.sum(axis=-1) ** 2 - (relu**2).sum(axis=-1)
    return float(both.mean() / (positions * (positions - 1)))


def _step(q: float, within: float, across: float, apart: float, gain: float) -> Step:
    a, b, d = (min(value / q, 1.0) for value in (within, across, apart))
    return Step(*(np.array([[value]]) for value in (q, a, b, d, gain)))
