"""Does a series over depth grow linearly, exponentially, or not at all? Works on plain lists; imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """Two least-squares lines through the same series, one on the values and one on their logarithms."""

    slope: float
    """Increment per step of the linear fit."""
    factor: float
    """Multiplier per step of the exponential fit: exp(slope of log value)."""
    r2_linear: float
    """R^2 of value against depth."""
    r2_log: float
    """R^2 of log value against depth."""
    spread: float
    """Largest value / smallest value."""

    @property
    def exponential(self) -> bool:
        """Whether the logarithm is the straighter of the two lines."""
        return self.r2_log > self.r2_linear


def fit_growth(values: Sequence[float]) -> Growth:
    """Fit ``values`` (one per layer or block, in order) linearly and log-linearly.

    A constant series has R^2 = 1 in both. Values that are not positive and finite make the logarithmic side NaN;
    fewer than three values fit anything, so everything but ``spread`` is NaN.
    """
    values = [float(v) for v in values]
    usable = all(math.isfinite(v) and v > 0 for v in values) and bool(values)
    spread = max(values) / min(values) if usable else math.nan
    if len(values) < 3:
        return Growth(math.nan, math.nan, math.nan, math.nan, spread)
    slope, r2_linear = _line(values)
    log_slope, r2_log = _line([math.log(v) for v in values]) if usable else (math.nan, math.nan)
    return Growth(slope, _exp(log_slope), r2_linear, r2_log, spread)


def tail_factor(stages: Sequence[Sequence[float]]) -> float:
    """Geometric mean of v[l+1] / v[l] over the second half of every stage of constant width.

    A linear law 1, 2, 3, ... gives 1.16 over steps 5 to 9 and tends to 1; doubling gives 2 wherever one looks. The
    steps between stages are left out: a normalized transition resets the stream.

    Args:
        stages: second moments, one list per stage of constant width and resolution.

    Returns:
        The factor per step; NaN where no stage has two values, infinite or NaN where the values are.
    """
    logs: list[float] = []
    for stage in stages:
        half = list(stage)[len(stage) // 2 :] if len(stage) > 2 else list(stage)
        logs += [_log_ratio(b, a) for a, b in itertools.pairwise(half)]
    if not logs:
        return math.nan
    mean = sum(logs) / len(logs)
    return _exp(mean)


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _log_ratio(b: float, a: float) -> float:
    if math.isnan(a) or math.isnan(b) or a < 0 or b < 0:
        return math.nan
    if a == b:
        return 0.0 if math.isfinite(a) else math.nan
    if b == 0 or math.isinf(a):
        return -math.inf
    if a == 0 or math.isinf(b):
        return math.inf
    return math.log(b / a) if math.isfinite(b / a) and b / a > 0 else math.log(b) - math.log(a)


def _line(y: Sequence[float]) -> tuple[float, float]:
    """Slope and R^2 of the least-squares line through (0, y0), (1, y1), ..."""
    scale = max(abs(v) for v in y)
    if not math.isfinite(scale):
        return math.nan, math.nan
    if scale == 0:
        return 0.0, 1.0
    n = len(y)
    scaled = [v / scale for v in y]  # squares of very large values would overflow
    x_mean, y_mean = (n - 1) / 2, math.fsum(scaled) / n
    sxx = n * (n * n - 1) / 12
    sxy = math.fsum((i - x_mean) * (v - y_mean) for i, v in enumerate(scaled))
    syy = math.fsum((v - y_mean) ** 2 for v in scaled)
    slope = sxy / sxx
    if syy <= (n * 1e-14) ** 2:  # constant up to rounding
        return slope * scale, 1.0
    residual = math.fsum((v - y_mean - slope * (i - x_mean)) ** 2 for i, v in enumerate(scaled))
    return slope * scale, max(0.0, 1 - residual / syy)
