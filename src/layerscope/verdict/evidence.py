"""How often verdicts were right, on trainings that nothing here was chosen on: one data file, ``evidence.json``.

It holds the fitted scores, the hit rate of every kind of verdict and the summary of the study they come from. One
command writes it from the committed rows (``python papers/beyond-batchnorm/hit_rate.py publish``); a test repeats that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from layerscope.verdict.foresight import Foresight
from layerscope.verdict.types import LABELS, Label

Basis = Literal["init", "micro"]
Source = Literal["fresh", "held-out"]

#: What the trainings of a source are called in a sentence.
_CALLED: dict[str, str] = {
    "fresh": "held-out trainings, all run after the rules were fixed,",
    "held-out": "held-out trainings",
}

_FILE = "evidence.json"


@dataclass(frozen=True)
class HitRate:
    """What became of the held-out trainings that got one kind of verdict."""

    count: int
    right: float
    """Share for which the verdict was right; see :data:`MEANING`."""
    low: float
    high: float
    """95 % interval, by drawing whole set-ups."""
    usual: float
    """The same share among all trainings of the source, whatever their verdict."""
    source: Source = "held-out"
    """``fresh``: run after rules and scores were fixed. ``held-out``: set aside from their making, some run before."""


@dataclass(frozen=True)
class Evidence:
    """The contents of the data file."""

    scores: Mapping[str, Foresight] = field(default_factory=dict)
    """The fitted formulas: ``probe init`` sees the probe alone, ``learned init`` the learning rate and the curvature
    too, ``learned micro`` the probe and real steps; ``risk init`` and ``risk micro`` are fitted to failing alone."""
    rates: Mapping[str, Mapping[str, HitRate]] = field(default_factory=dict)
    """By basis (``init``, ``micro``) and label."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from."""


#: What counts as right. A training fails if it diverges or never gets clear of chance.
MEANING: dict[Label, str] = {
    "healthy": "trained",
    "slow": "failed or were slower than most in their set-up",
    "very slow": "failed or were slower than most in their set-up",
    "unstable": "failed",
    "fails": "failed",
}


@cache
def load() -> Evidence:
    """The evidence that comes with the package; empty where there is none."""
    file = resources.files("layerscope.verdict").joinpath(_FILE)
    if not file.is_file():
        return Evidence()
    return parse(json.loads(file.read_text()))


def parse(data: Mapping[str, Any]) -> Evidence:
    """From the JSON document."""
    scores = {name: Foresight.from_plain(formula) for name, formula in data["scores"].items()}
    rates = {
        basis: {label: HitRate(**rate) for label, rate in labels.items()} for basis, labels in data["rates"].items()
    }
    return Evidence(scores, rates, data["summary"])


def track_records(labels: Iterable[Label], basis: Basis) -> str:
    """The same for several kinds of verdict, in one sentence."""
    rates = load().rates.get(basis, {})
    known = [
        f"{label} {rates[label].right:.0%} {MEANING[label]} (of all {rates[label].usual:.0%})"
        for label in LABELS
        if label in set(labels) and label in rates
    ]
    return f"Hit rate on held-out trainings: {'; '.join(known)}." if known else ""


def track_record(label: Label, basis: Basis) -> str:
    """One sentence: how often verdicts of this kind were right on held-out trainings; empty if that is not known."""
    rate = load().rates.get(basis, {}).get(label)
    if rate is None:
        return ""
    steps = "and 20 real steps" if basis == "micro" else "alone"
    called = f"{rate.count} {_CALLED[rate.source]} called {label} from initialization {steps}"
    share = f"{rate.right:.0%} [{rate.low:.0%}, {rate.high:.0%}] {MEANING[label]}"
    return f"Hit rate: of {called}, {share}; {rate.usual:.0%} of all did."
