"""Intervals of a mean over few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: 97.5 % points of Student's t, by degrees of freedom.
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; needs at least two values and at most ten."""
    mean, n = statistics.fmean(values), len(values)
    half = T975[n - 1] * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half
