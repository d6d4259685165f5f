"""The scores that are compared, and the card that shows them side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerscope.errors import StudyError
from layerscope.study.design import Study
from layerscope.study.scoring import Entry, Score, Scored, ceiling, entries, evaluate, number, reputation
from layerscope.study.statistics import Interval

_LABELS = ("fails", "unstable", "very slow", "slow", "healthy")


@dataclass(frozen=True)
class Scorecard:
    """Every score on the same trainings."""

    rows: int
    strata: int
    failing: int
    part: str
    """Which trainings: ``all``, ``development`` or ``held out``."""
    ceiling: Interval | None
    scores: tuple[Scored, ...]
    baselines: tuple[Scored, ...]

    def __str__(self) -> str:
        head = (
            f"{self.rows} trainings ({self.part}) in {self.strata} strata; {self.failing} fail. "
            f"Mean and 95 % interval; ceiling (two seeds of one set-up): Spearman {self.ceiling or 'not measured'}"
        )
        names = ("score", "Spearman", "Kendall", "AUROC fails", "regret")
        lines = [_cells(s) for s in self.scores] + [("-- baselines",)] + [_cells(s) for s in self.baselines]
        widths = [max(len(line[i]) for line in (names, *lines) if len(line) > 1) for i in range(len(names))]
        table = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=False)).rstrip() for line in (names, *lines)]
        return "\n".join([head, "", *table])


def scorecard(
    study: Study, table: Sequence[Mapping[str, Any]], *, held_out: bool | None = None, draws: int = 1000
) -> Scorecard:
    """Score the verdict, the probe's features and the baselines on a study's results.

    Args:
        study: tells which arguments make a stratum: all that vary, but ``norm`` and ``seed``.
        table: flat rows of its results.
        held_out: only trainings that the study file holds out (True) or does not (False); all if not given.
        draws: bootstrap samples.

    Raises:
        StudyError: nothing to score.
    """
    axes = [name for name, values in study.distinct().items() if len(values) > 1 and name not in ("norm", "seed")]
    everything = entries(table, axes)
    rows = [e for e in everything if held_out is None or bool(e.row.get("held_out")) == held_out]
    if not rows:
        raise StudyError("there is no finished training to score")
    chosen = {e.row["id"] for e in rows}
    elsewhere = [s for e, s in zip(everything, reputation(everything), strict=True) if e.row["id"] in chosen]

    def scored(name: str, score: Score) -> Scored:
        return evaluate(name, rows, [score(e) for e in rows], draws=draws)

    return Scorecard(
        rows=len(rows),
        strata=len({e.stratum for e in rows}),
        failing=sum(e.fails for e in rows),
        part={None: "all", True: "held out", False: "development"}[held_out],
        ceiling=ceiling(rows, draws=draws),
        scores=tuple(scored(name, score) for name, score in SCORES.items()),
        baselines=(
            *(scored(name, score) for name, score in BASELINES.items()),
            evaluate("reputation elsewhere", rows, elsewhere, draws=draws),
        ),
    )


def verdict_rank(entry: Entry) -> float | None:
    """The verdict's label, from ``fails`` 0 to ``healthy`` 4; None for ``unknown``."""
    label = entry.row.get("verdict")
    return float(_LABELS.index(label)) if label in _LABELS else None


def _feature(name: str, sign: float = 1.0) -> Score:
    def score(entry: Entry) -> float | None:
        value = number(entry.row.get(name))
        return None if value is None else sign * value

    return score


def _near_one(name: str) -> Score:
    """-abs(log x): best where x is 1."""

    def score(entry: Entry) -> float | None:
        value = number(entry.row.get(name))
        if value is None:
            return None
        return -abs(math.log(value)) if 0.0 < value < math.inf else -math.inf

    return score


#: What the package says before training, each oriented so that higher is better.
SCORES: dict[str, Score] = {
    "verdict": verdict_rank,
    "pooled similarity": _feature("init.cosine_pooled", -1.0),
    "forward scale": _near_one("init.ms_last"),
    "gradient ratio": _near_one("init.grad_ratio"),
    "batch noise": _feature("init.batch_noise", -1.0),
    "accuracy of 20 steps": _feature("micro.accuracy"),
}

#: What anyone could use instead.
BASELINES: dict[str, Score] = {
    "constant": lambda entry: 0.0,
    "official similarity": _feature("init.cosine", -1.0),
    "raw gradient ratio": _near_one("init.grad_ratio_raw"),
    "loss after 20 steps": _feature("micro.loss", -1.0),
    "parameter count": _feature("parameters"),
}


def _cells(s: Scored) -> tuple[str, ...]:
    note = f" ({s.missing} missing)" if s.missing else ""
    return (s.name + note, *(str(v) if v else "-" for v in (s.spearman, s.tau, s.auroc, s.regret)))
