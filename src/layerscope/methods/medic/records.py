"""What judging leaves behind, as plain values. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerscope._show import Shown


@dataclass(frozen=True)
class Scores:
    """One network under one trigger. Per image, success and recovery exclude each other, so asr + ra <= 1."""

    acc: float
    """Share of clean test images classified right."""
    asr: float
    """Attack success rate: share of triggered images of other classes that are classified as the target."""
    ra: float
    """Recovered accuracy: share of the same images still given their true label."""
    n_clean: int
    n_triggered: int

    def __str__(self) -> str:
        return f"ACC {self.acc:.1%} of {self.n_clean}, ASR {self.asr:.1%}, RA {self.ra:.1%} of {self.n_triggered}"


@dataclass(frozen=True)
class Entry:
    """One defence under one trigger, all seeds."""

    defence: str
    trigger: str
    scores: tuple[Scores, ...]
    """One for every seed."""
    seconds: float
    """Wall clock time of one run of the defence, mean over seeds."""

    def mean(self, what: str) -> float:
        """Mean over seeds of ``acc``, ``asr`` or ``ra``."""
        values = [float(getattr(s, what)) for s in self.scores]
        return sum(values) / len(values)

    def spread(self, what: str) -> tuple[float, float]:
        """Smallest and largest over seeds."""
        values = [float(getattr(s, what)) for s in self.scores]
        return min(values), max(values)


@dataclass(frozen=True)
class Table(Shown):
    """Several defences under several triggers. Nothing in it was chosen by attack success."""

    model: str
    clean_samples: int
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    floor: str
    """What the row ``floor`` is: the network without poison that attack success is read against."""
    notes: tuple[str, ...] = ()

    def front(self, trigger: str) -> tuple[Entry, ...]:
        """Defences that no other beats in both accuracy and attack success, for one trigger, by rising accuracy."""
        own = [e for e in self.entries if e.trigger == trigger and e.defence not in ("floor", "before")]

        def beaten(e: Entry) -> bool:
            at = (e.mean("acc"), -e.mean("asr"))
            others = [(o.mean("acc"), -o.mean("asr")) for o in own]
            return any(o != at and o[0] >= at[0] and o[1] >= at[1] for o in others)

        return tuple(sorted((e for e in own if not beaten(e)), key=lambda e: e.mean("acc")))

    @property
    def triggers(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(dict.fromkeys(e.trigger for e in self.entries))

    def to_csv(self, path: str | Path) -> Path:
        """Write one line for every defence, trigger and seed to ``path`` and return the path."""
        path = Path(path)
        path.write_text(self.csv())
        return path

    def csv(self) -> str:
        """One line for every defence, trigger and seed, with a header."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("defence", "trigger", "seed", "acc", "asr", "ra", "n_clean", "n_triggered", "seconds"))
        writer.writerows(self._lines())
        return out.getvalue()

    def _lines(self) -> Iterator[tuple[object, ...]]:
        for e in self.entries:
            once = len(e.scores) == 1
            for seed, s in zip(self.seeds, e.scores, strict=False):
                numbers = (f"{v:.6f}" for v in (s.acc, s.asr, s.ra))
                yield (e.defence, e.trigger, "" if once and e.defence == "before" else seed, *numbers, s.n_clean,
                       s.n_triggered, f"{e.seconds:.3f}")  # fmt: skip
