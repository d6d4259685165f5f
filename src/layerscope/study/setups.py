"""A sub-sample of a grid by whole set-ups: what competes inside a set-up is run together or not at all.

A rank correlation needs all competitors (the norms) of one set-up, so a design that drops single trials is of little
use to it. Here set-ups are drawn instead::

    [design]
    within  = ["norm"]                           # a set-up is run with every norm
    strata  = ["net", "data"]                    # each combination of these gets set-ups of its own
    setups  = 9                                  # this many; or a table {value of a stratum = number}
    square  = ["depth", "batch_size", "lr"]      # chosen so that all values, and all pairs of values, are equally often
    repeats = 1                                  # set-ups of each stratum that run at every seed, not just at the first
    seed    = 0                                  # shifts the choice, differently in each stratum

With three axes of n values in ``square``, n^2 set-ups are a Latin square (every pair of values of two axes occurs
exactly once), and for odd n the first n of them contain every value of every axis once. Trials run in rounds, one
set-up of every stratum in each, so that a study that is stopped early is a balanced sample too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.errors import StudyError
from layerscope.study.trial import Trial, Value

SEED = "seed"


@dataclass(frozen=True)
class Setups:
    """How set-ups are drawn; see the module."""

    within: tuple[str, ...]
    strata: tuple[str, ...]
    count: int | tuple[tuple[str, int], ...]
    """Set-ups of each stratum; by the value of one of its arguments if a table."""
    square: tuple[tuple[str, tuple[Value, ...]], ...]
    repeats: int
    seed: int

    def draw(self, trials: Sequence[Trial]) -> tuple[Trial, ...]:
        """The chosen trials, in the order in which they should run."""
        strata: dict[tuple[Value, ...], dict[tuple[tuple[str, Value], ...], list[Trial]]] = {}
        for trial in trials:
            setup = tuple(p for p in trial.params if p[0] not in (*self.within, SEED))
            stratum = tuple(trial.arguments[name] for name in self.strata)
            strata.setdefault(stratum, {}).setdefault(setup, []).append(trial)
        seeds = list(dict.fromkeys(t.arguments.get(SEED) for t in trials))
        rounds = self.count if isinstance(self.count, int) else max(n for _, n in self.count)
        placed: list[tuple[int, int, Trial]] = []
        for place, (stratum, setups) in enumerate(strata.items()):
            count = self._count(stratum)
            chosen = sorted(setups, key=lambda setup: self._rank(stratum, dict(setup)))[:count]
            for k, setup in enumerate(chosen):
                for trial in setups[setup]:
                    turn = seeds.index(trial.arguments.get(SEED))
                    if turn == 0 or k < self.repeats:
                        placed.append((k + turn * rounds // len(seeds), place, trial))
        return tuple(trial for _, _, trial in sorted(placed, key=lambda p: p[:2]))

    def _count(self, stratum: tuple[Value, ...]) -> int:
        if isinstance(self.count, int):
            return self.count
        found = next((n for value, n in self.count if value in stratum), None)
        if found is None:
            raise StudyError(f"design.setups gives no number for the stratum {', '.join(map(str, stratum))}")
        return found

    def _rank(self, stratum: tuple[Value, ...], setup: dict[str, Value]) -> tuple[int, int, int, bytes]:
        """Place of a set-up in its stratum: Latin squares first, in them sets that hold every value once."""
        other = hashlib.sha256(f"{self.seed}:{stratum}:{sorted(setup.items())}".encode()).digest()
        if not self.square:
            return 0, 0, 0, other
        shifts = hashlib.sha256(f"{self.seed}:{stratum}".encode()).digest()
        places = [values.index(setup[name]) for name, values in self.square]
        n = len(self.square[0][1])
        return (
            (sum(places) + shifts[0]) % n,
            (places[1] - places[0] + shifts[1]) % n,
            (places[0] + shifts[2]) % n,
            other,
        )
