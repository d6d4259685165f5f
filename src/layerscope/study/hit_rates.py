"""How often each kind of verdict was right, with intervals that draw whole set-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from layerscope.study.scoring import Entry
from layerscope.verdict.evidence import HitRate
from layerscope.verdict.types import LABELS

#: The column that holds the verdict, for each basis it can rest on.
COLUMNS = {"init": "verdict", "micro": "micro.verdict"}

#: A fresh hit rate of fewer trainings is not published alone.
FEWEST = 30

Right = Callable[[Entry], bool]


def hit_rates(
    rows: Sequence[Entry], everything: Sequence[Entry], *, draws: int = 1000
) -> dict[str, dict[str, HitRate]]:
    """Hit rates by basis and label.

    ``healthy`` is right if training did not fail, ``fails`` and ``unstable`` if it did, ``slow`` and ``very slow`` if
    it failed or had a lower mean accuracy than the median of its set-up.

    Args:
        rows: the trainings whose verdicts are counted.
        everything: all trainings, for the medians of their set-ups.
        draws: bootstrap samples.
    """
    setups: dict[Any, list[float]] = {}
    for entry in everything:
        setups.setdefault((entry.stratum, entry.seed), []).append(entry.outcome)
    middle = {key: median(values) for key, values in setups.items()}

    def slow(entry: Entry) -> bool:
        return entry.fails or entry.outcome < middle[entry.stratum, entry.seed]

    right: dict[str, Right] = {
        "healthy": lambda e: not e.fails,
        "slow": slow,
        "very slow": slow,
        "unstable": lambda e: e.fails,
        "fails": lambda e: e.fails,
    }
    found: dict[str, dict[str, HitRate]] = {}
    for basis, column in COLUMNS.items():
        found[basis] = {}
        for label in LABELS:
            chosen = [e for e in rows if e.row.get(column) == label]
            if label in right and chosen:
                found[basis][label] = _rate(chosen, rows, right[label], draws)
    return found


def cleanest(
    fresh: dict[str, dict[str, HitRate]], held_out: dict[str, dict[str, HitRate]]
) -> dict[str, dict[str, HitRate]]:
    """For each kind of verdict, the fresh rate where it rests on enough trainings, else that of all held-out ones."""
    return {
        basis: {
            label: replace(found, source="fresh")
            if (found := fresh.get(basis, {}).get(label)) and found.count >= FEWEST
            else rate
            for label, rate in rates.items()
        }
        for basis, rates in held_out.items()
    }


def _rate(chosen: Sequence[Entry], rows: Sequence[Entry], right: Right, draws: int) -> HitRate:
    strata: dict[tuple[str, ...], list[bool]] = {}
    for entry in chosen:
        strata.setdefault(entry.stratum, []).append(right(entry))
    hits = np.array([sum(v) for v in strata.values()], dtype=float)
    counts = np.array([len(v) for v in strata.values()], dtype=float)
    picks = np.random.Generator(np.random.PCG64(0)).integers(len(hits), size=(draws, len(hits)))
    low, high = np.quantile(hits[picks].sum(1) / counts[picks].sum(1), [0.025, 0.975])
    usual = sum(right(e) for e in rows) / len(rows)
    share, low, high, usual = (round(float(v), 4) for v in (hits.sum() / counts.sum(), low, high, usual))
    return HitRate(len(chosen), share, low, high, usual)
