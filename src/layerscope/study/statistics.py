"""Rank statistics on short lists of plain numbers: correlations with ties, AUROC, a two-level bootstrap. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with the middle 95 % of its bootstrap."""

    mean: float
    low: float
    high: float
    groups: int
    """Independent groups it was taken over."""

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs.

    >>> ranks([3.0, 1.0, 3.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    x = np.asarray(values, dtype=np.float64)
    ordered = np.sort(x)
    return np.asarray((np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right") + 1) / 2.0)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho: the correlation of the ranks, ties averaged. None where x or y is constant or has fewer than two.

    Infinite values rank at the ends; NaN is the caller's to remove.
    """
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b)) if len(a) > 1 else 0.0
    return float(a @ b) / scale if scale > 0.0 else None


def kendall_tau_b(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b: (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y). None as above."""
    a, b = ranks(x), ranks(y)
    upper = np.triu_indices(len(a), 1)
    p, q = (np.sign(v[:, None] - v[None, :])[upper] for v in (a, b))
    scale = math.sqrt(float(np.abs(p).sum()) * float(np.abs(q).sum()))
    return float((p * q).sum()) / scale if scale > 0.0 else None


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Probability that a positive has a higher score than a negative, ties counting half. None without both kinds."""
    labels = np.asarray(positive, dtype=bool)
    n, m = int(labels.sum()), int((~labels).sum())
    if not n or not m:
        return None
    return float((ranks(scores)[labels].sum() - n * (n + 1) / 2.0) / (n * m))


def bootstrap_mean(groups: Sequence[Sequence[float]], *, draws: int = 2000, seed: int = 0) -> Interval | None:
    """Mean over groups of the mean in each, with an interval that draws groups, and members in each, with replacement.

    Args:
        groups: one list of values for each independent group (stratum); empty ones do not count.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        None without any value.
    """
    filled = [np.asarray(g, dtype=np.float64) for g in groups if len(g)]
    if not filled:
        return None
    generator = np.random.Generator(np.random.PCG64(seed))
    resampled = np.stack([g[generator.integers(len(g), size=(draws, len(g)))].mean(axis=1) for g in filled])
    chosen = generator.integers(len(filled), size=(draws, len(filled)))
    means = resampled[chosen, np.arange(draws)[:, None]].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean([g.mean() for g in filled])), float(low), float(high), len(filled))
