"""Fit the learned score of :mod:`layerscope.verdict.foresight` to finished trainings: ridge logistic regression, numpy.

Three ways of fitting share one formula, so that they can be compared on the development part:

* ``level``: the accuracy itself. Sees what makes a set-up hard (learning rate, depth) and what makes a norm good.
* ``place``: the accuracy's place among the norms of its set-up. Sees differences inside a set-up only.
* ``risk``: whether training failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from layerscope.errors import StudyError, did_you_mean
from layerscope.study.scoring import Entry
from layerscope.study.statistics import ranks
from layerscope.verdict.foresight import Foresight, design

Target = Literal["level", "place", "risk"]
Floats = NDArray[np.float64]


def fit(
    rows: Sequence[Entry], terms: Sequence[str], *, target: Target = "level", ridge: float = 1.0, chance: float = 0.1
) -> Foresight:
    """The formula that fits these trainings best; every set-up weighs the same.

    Args:
        rows: finished trainings.
        terms: names of :data:`layerscope.verdict.foresight.TERMS`.
        target: what is fitted, see the module.
        ridge: strength of the pull of the standardized weights toward 0, in trainings.
        chance: accuracy of guessing.

    Raises:
        StudyError: no rows, or an unknown target.
    """
    if not rows:
        raise StudyError("there is no finished training to fit")
    if target not in get_args(Target):
        raise StudyError(f"nothing to fit called {target!r}: {did_you_mean(str(target), get_args(Target))}")
    raw = np.array([[np.nan if v is None else v for v in line] for line in design([e.row for e in rows], terms)])
    centres = np.nan_to_num(np.nanmean(np.where(np.isnan(raw).all(0), 0.0, raw), axis=0))
    scales = np.nan_to_num(np.nanstd(np.where(np.isnan(raw).all(0), 0.0, raw), axis=0))
    scales = np.where(scales > 1e-9, scales, 1.0)
    x = np.nan_to_num((raw - centres) / scales)
    groups = _groups(rows)
    sizes = np.zeros(len(rows))
    for members in groups:
        sizes[members] = len(members)
    weight = sizes.mean() / sizes
    if target == "place":
        x = _within(x, groups)
    y = _targets(rows, groups, target, chance)
    beta = _logistic(np.hstack([x, np.ones((len(x), 1))]), y, weight, ridge)
    if target == "risk":
        beta = -beta
    return Foresight(
        tuple(terms),
        tuple(round(float(b), 4) for b in beta[:-1]),
        tuple(round(float(c), 4) for c in centres),
        tuple(round(float(s), 4) for s in scales),
        round(float(beta[-1]), 4),
    )


def _targets(rows: Sequence[Entry], groups: Sequence[list[int]], target: Target, chance: float) -> Floats:
    outcomes = np.array([e.outcome for e in rows])
    if target == "risk":
        return np.array([float(e.fails) for e in rows])
    if target == "level":
        return np.clip((outcomes - chance) / (1.0 - chance), 0.0, 1.0)
    y = np.full(len(rows), 0.5)
    for members in groups:
        if len(members) > 1:
            y[members] = (ranks(outcomes[members].tolist()) - 1.0) / (len(members) - 1)
    return y


def _groups(rows: Sequence[Entry]) -> list[list[int]]:
    found: dict[Any, list[int]] = {}
    for index, entry in enumerate(rows):
        found.setdefault((entry.stratum, entry.seed), []).append(index)
    return list(found.values())


def _within(x: Floats, groups: Sequence[list[int]]) -> Floats:
    centred = x.copy()
    for members in groups:
        centred[members] -= centred[members].mean(axis=0)
    return centred


def _logistic(x: Floats, y: Floats, weight: Floats, ridge: float) -> Floats:
    """Weighted ridge logistic regression with targets in [0, 1] by Newton's method; the last column is not pulled."""
    pull = np.full(x.shape[1], ridge)
    pull[-1] = 1e-6
    beta = np.zeros(x.shape[1])
    for _ in range(60):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ beta, -30, 30)))
        slope = x.T @ (weight * (p - y)) + pull * beta
        curve = (x * (weight * np.maximum(p * (1 - p), 1e-4))[:, None]).T @ x + np.diag(pull)
        step = np.linalg.solve(curve, slope)
        largest = float(np.abs(step).max())
        beta = beta - step * min(1.0, 2.0 / max(largest, 1e-12))
        if largest < 1e-8:
            break
    return beta
