"""How often a score made before training is right: measured within strata, with intervals, beside trivial baselines.

A *stratum* is one training set-up (network, data, batch size, learning rate, ...); what competes in it are the norms.
Correlations are taken within a stratum and then averaged, because pooled ones mostly say that deep nets are hard. All
scores are oriented so that higher means "will train better".

* **Spearman, Kendall tau-b**: of the score with mean training accuracy, over the norms of a stratum, for each seed;
mean
  over strata. A stratum in which more than half of the trainings fail ranks noise and is left out here.
* **AUROC**: probability that a training that fails had a lower score than one that does not; over all rows.
* **Regret**: accuracy lost in a stratum by taking the norm with the best score instead of the best norm.

Intervals are bootstraps over strata, and over seeds within each. A missing score counts as the stratum's median, a
score that is not a number as the worst.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerscope.errors import StudyError, did_you_mean
from layerscope.study.statistics import Interval, auroc, bootstrap_mean, kendall_tau_b, ranks, spearman

#: Arguments of a trial that make up its stratum, besides every other one that varies.
COMPETITORS = ("norm", "seed")

#: A stratum with fewer norms is not ranked.
FEWEST_NORMS = 4


@dataclass(frozen=True)
class Entry:
    """One training, ready to be scored."""

    stratum: tuple[str, ...]
    norm: str
    seed: int
    outcome: float
    """Mean training accuracy; 0 where there is none."""
    fails: bool
    row: Mapping[str, Any]
    """The flat row it came from."""


@dataclass(frozen=True)
class Scored:
    """How good one score is."""

    name: str
    spearman: Interval | None
    tau: Interval | None
    auroc: Interval | None
    regret: Interval | None
    missing: int
    """Rows without a score."""


#: From an entry to its score, higher is better; None where there is none.
Score = Callable[[Entry], float | None]


def entries(table: Iterable[Mapping[str, Any]], stratum: Sequence[str]) -> tuple[Entry, ...]:
    """The finished trainings of a flat table (:func:`layerscope.study.flatten`).

    Args:
        table: flat rows with ``norm``, ``seed``, ``outcome.mean_accuracy`` and ``outcome.fails``.
        stratum: columns that tell set-ups apart, such as ``net``, ``data``, ``batch_size``, ``lr``.

    Raises:
        StudyError: a column is absent.
    """
    found = []
    for row in table:
        if row.get("state") != "done":
            continue
        for column in ("norm", "outcome.mean_accuracy", "outcome.fails", *stratum):
            if column not in row:
                raise StudyError(f"the results have no column {column!r}: {did_you_mean(column, row)}")
        outcome = number(row["outcome.mean_accuracy"])
        found.append(
            Entry(
                tuple(str(row[c]) for c in stratum),
                str(row["norm"]),
                int(row.get("seed", 0)),
                outcome if outcome is not None and math.isfinite(outcome) else 0.0,
                bool(row["outcome.fails"]),
                row,
            )
        )
    return tuple(found)


def evaluate(name: str, rows: Sequence[Entry], scores: Sequence[float | None], *, draws: int = 2000) -> Scored:
    """How well ``scores`` foresee the outcomes of ``rows``.

    Args:
        name: what the score is called.
        rows: trainings.
        scores: one for each, higher is better.
        draws: bootstrap samples.
    """
    filled = _filled(rows, scores)
    by_stratum: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for index, entry in enumerate(rows):
        by_stratum.setdefault(entry.stratum, {}).setdefault(entry.seed, []).append(index)
    rho: list[list[float]] = []
    tau: list[list[float]] = []
    regret: list[list[float]] = []
    for seeds in by_stratum.values():
        members = [i for indices in seeds.values() for i in indices]
        ranked = sum(rows[i].fails for i in members) <= len(members) / 2
        rho.append([])
        tau.append([])
        regret.append([])
        for indices in seeds.values():
            x, y = [filled[i] for i in indices], [rows[i].outcome for i in indices]
            if len(indices) < FEWEST_NORMS:
                continue
            regret[-1].append(_regret(x, y))
            if ranked and len(set(y)) > 1:
                # a score that is the same for all norms has no correlation with anything
                rho[-1].append(spearman(x, y) or 0.0)
                tau[-1].append(kendall_tau_b(x, y) or 0.0)
    return Scored(
        name,
        bootstrap_mean(rho, draws=draws),
        bootstrap_mean(tau, draws=draws),
        _auroc(rows, filled, draws),
        bootstrap_mean(regret, draws=draws),
        sum(s is None for s in scores),
    )


def ceiling(rows: Sequence[Entry], *, draws: int = 2000) -> Interval | None:
    """Spearman between the outcomes of two training seeds: what no score that is blind to the seed can beat."""
    outcomes: dict[tuple[str, ...], dict[int, dict[str, Entry]]] = {}
    for entry in rows:
        outcomes.setdefault(entry.stratum, {}).setdefault(entry.seed, {})[entry.norm] = entry
    groups = []
    for seeds in outcomes.values():
        everything = [e for norms in seeds.values() for e in norms.values()]
        values = []
        if sum(e.fails for e in everything) <= len(everything) / 2:
            runs = list(seeds.values())
            for first in range(len(runs)):
                for second in range(first + 1, len(runs)):
                    common = sorted(runs[first].keys() & runs[second].keys())
                    if len(common) >= FEWEST_NORMS:
                        pair = spearman(*([runs[k][n].outcome for n in common] for k in (first, second)))
                        values += [pair] if pair is not None else []
        groups.append(values)
    return bootstrap_mean(groups, draws=draws)


def reputation(
    rows: Sequence[Entry], *, apart: str | None = None, among: Sequence[Entry] | None = None
) -> list[float | None]:
    """Baseline: how a norm did elsewhere, as its mean rank (0 worst, 1 best) over all other strata.

    Args:
        rows: trainings.
        apart: a column; strata that share its value with the row do not count either (``net``: other networks only).
        among: the trainings from which the reputation is known; ``rows`` themselves if not given.

    Returns:
        A score for each row; None for a norm that was seen nowhere else.
    """
    places: dict[str, list[tuple[tuple[str, ...], Any, float]]] = {}
    groups: dict[tuple[tuple[str, ...], int], list[Entry]] = {}
    for entry in rows if among is None else among:
        groups.setdefault((entry.stratum, entry.seed), []).append(entry)
    for (stratum, _), members in groups.items():
        if len(members) < 2:
            continue
        place = (ranks([e.outcome for e in members]) - 1.0) / (len(members) - 1)
        for entry, value in zip(members, place, strict=True):
            places.setdefault(entry.norm, []).append((stratum, entry.row.get(apart or ""), float(value)))
    found: list[float | None] = []
    for entry in rows:
        own = entry.row.get(apart or "")
        elsewhere = [
            v for s, where, v in places.get(entry.norm, ()) if s != entry.stratum and (apart is None or where != own)
        ]
        found.append(float(np.mean(elsewhere)) if elsewhere else None)
    return found


def leave_one_out(rows: Sequence[Entry], column: str, fit: Callable[[Sequence[Entry]], Score]) -> list[float | None]:
    """Scores of rows by a predictor that was fitted without any row that shares the row's value of ``column``.

    Args:
        rows: trainings.
        column: ``norm``, ``net``, ``data``: what is left out.
        fit: from training rows to a score.
    """
    found: list[float | None] = [None] * len(rows)
    for value in dict.fromkeys(entry.row.get(column) for entry in rows):
        inside = [i for i, entry in enumerate(rows) if entry.row.get(column) == value]
        outside = [entry for entry in rows if entry.row.get(column) != value]
        if outside:
            score = fit(outside)
            for index in inside:
                found[index] = score(rows[index])
    return found


def number(value: Any) -> float | None:
    """A result as a number; text such as ``nan`` and ``inf`` too. None for anything else."""
    if isinstance(value, bool | int | float):
        return float(value)
    if value in ("nan", "inf", "-inf"):
        return float(value)
    return None


def _filled(rows: Sequence[Entry], scores: Sequence[float | None]) -> list[float]:
    """Scores without gaps: NaN is the worst, a missing one the median of its stratum."""
    known = [None if s is None else (-math.inf if math.isnan(s) else s) for s in scores]
    medians: dict[tuple[str, ...], list[float]] = {}
    for entry, score in zip(rows, known, strict=True):
        if score is not None:
            medians.setdefault(entry.stratum, []).append(score)
    middle = {stratum: sorted(values)[len(values) // 2] for stratum, values in medians.items()}
    return [middle.get(e.stratum, 0.0) if s is None else s for e, s in zip(rows, known, strict=True)]


def _regret(scores: Sequence[float], outcomes: Sequence[float]) -> float:
    """Best outcome less the mean outcome of those with the top score."""
    top = [y for x, y in zip(scores, outcomes, strict=True) if x == max(scores)]
    return max(outcomes) - sum(top) / len(top)


def _auroc(rows: Sequence[Entry], scores: Sequence[float], draws: int) -> Interval | None:
    """AUROC over all rows, with an interval that draws whole strata with replacement."""
    fails = np.array([e.fails for e in rows])
    # ranks survive infinities, which a difference would not
    alarm = -ranks(scores) if len(rows) else np.zeros(0)
    mean = auroc(alarm.tolist(), fails.tolist())
    if mean is None:
        return None
    strata: dict[tuple[str, ...], list[int]] = {}
    for index, entry in enumerate(rows):
        strata.setdefault(entry.stratum, []).append(index)
    members = [np.array(indices) for indices in strata.values()]
    generator = np.random.Generator(np.random.PCG64(0))
    values = []
    for _ in range(draws):
        chosen = np.concatenate([members[k] for k in generator.integers(len(members), size=len(members))])
        value = auroc(alarm[chosen].tolist(), fails[chosen].tolist())
        if value is not None:
            values.append(value)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(mean, float(low), float(high), len(members))
