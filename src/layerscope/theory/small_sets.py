"""The same map as :mod:`layerscope.theory.sets` for statistic sets of a few elements: every element is drawn.

Below 16 elements (Instance Norm on 2 x 2 maps, BatchNorm at batch size 4 without positions) the fluctuation of sigma is
the whole story, and nothing may be averaged in closed form. It is cheap to be exact here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.sets import Across, Step

Floats = NDArray[np.float64]

#: Sets drawn for each configuration; every one is also used with the opposite sign.
SETS = 2048


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
        values = generator.standard_normal((2, SETS, units, positions))
        mean = values.mean(axis=3, keepdims=True)
        self._residual, self._mean = values - mean, mean * np.sqrt(positions)
        self._shared = generator.standard_normal((SETS, 1, 1))
        self.across, self.centred = across, centred
        self.units, self.positions, self.size = units, positions, units * positions

    def step(self, a: Floats, b: Floats) -> Step:
        """One layer, from correlations a and b of shape [1, 1]."""
        alpha, beta = float(a[0, 0]), float(b[0, 0])
        if self.across == "channels":
            return self._channels(alpha, beta)
        return self._samples(alpha, beta)

    def _channels(self, a: float, b: float) -> Step:
        spread = max(a + (1.0 - a) / self.positions, 1e-12)
        rho = min(b / spread, 1.0)
        new = np.sqrt(1.0 - rho * rho)
        means = np.sqrt(spread) * np.stack([self._mean[0], rho * self._mean[0] + new * self._mean[1]])
        x = means + np.sqrt(max(1.0 - a, 0.0)) * self._residual
        if self.centred:
            x = x - x.mean(axis=(2, 3), keepdims=True)
        inverse2 = 1.0 / np.maximum((x * x).mean(axis=(2, 3), keepdims=True), 1e-12)
        x = x * np.sqrt(inverse2)
        within = across = 0.0
        for sign in (1.0, -1.0):
            relu = np.maximum(sign * x, 0.0)
            within += _pairs(relu) / 2.0
            across += float((relu[0].mean(axis=2) * relu[1].mean(axis=2)).mean()) / 2.0
        lost = 2.0 if self.centred else 1.0
        scale = self._mean_inverse(inverse2, 1.0 - a if self.centred and self.units == 1 else None)
        return _step(0.5, within, across, scale * (1.0 - lost / self.size) / 2.0)

    def _samples(self, a: float, b: float) -> Step:
        spread = max(a + (1.0 - a) / self.positions - b, 0.0)
        x = np.sqrt(spread) * self._mean[0] + np.sqrt(max(1.0 - a, 0.0)) * self._residual[0]
        mu = x.mean(axis=(1, 2), keepdims=True)
        centred = x - mu
        inverse2 = 1.0 / np.maximum((centred * centred).mean(axis=(1, 2), keepdims=True), 1e-12)
        y = centred if self.centred else x + np.sqrt(max(b, 0.0)) * self._shared
        centred, y = centred * np.sqrt(inverse2), y * np.sqrt(inverse2)
        within = across = 0.0
        for sign in (1.0, -1.0):
            relu = np.maximum(sign * y, 0.0)
            within += _pairs(relu) / 2.0
            unit_means = relu.mean(axis=2)
            both = unit_means.sum(axis=1) ** 2 - (unit_means**2).sum(axis=1)
            across += float(both.mean()) / (2.0 * self.units * max(self.units - 1, 1))
        if self.centred:
            scale = self._mean_inverse(inverse2, 1.0 - b if self.positions == 1 else None)
            return _step(0.5, within, across, scale * (1.0 - 2.0 / self.size) / 2.0)
        gain = float((inverse2 * (1.0 + (y - 2.0 * centred) * y / self.size)).mean()) / 2.0
        return _step(float((y * y).mean()) / 2.0, within, across, gain)

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


def _step(q: float, within: float, across: float, gain: float) -> Step:
    a, b = min(within / q, 1.0), min(across / q, 1.0)
    return Step(*(np.array([[value]]) for value in (q, a, b, gain)))
