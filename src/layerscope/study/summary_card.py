"""The scores that are compared, and the card that shows them side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerscope.errors import StudyError, did_you_mean
from layerscope.study.design import Study
from layerscope.study.rejudge import rejudged
from layerscope.study.scoring import Entry, Score, Scored, ceiling, entries, evaluate, number, reputation
from layerscope.study.statistics import Interval
from layerscope.verdict import evidence

_LABELS = ("fails", "unstable", "very slow", "slow", "healthy")


@dataclass(frozen=True)
class Scorecard:
    """Every score on the same trainings."""

    rows: int
    strata: int
    failing: int
    part: str
    """Which trainings: one of :func:`parts`."""
    ceiling: Interval | None
    groups: tuple[tuple[str, tuple[Scored, ...]], ...]
    """Scores under a heading each: from initialization, with real steps, baselines."""

    def __getitem__(self, name: str) -> Scored:
        """The score of this name."""
        for _, scores in self.groups:
            for scored in scores:
                if scored.name == name:
                    return scored
        raise KeyError(name)

    def __str__(self) -> str:
        """At most 80 columns wide."""
        head = [
            f"{self.rows} trainings ({self.part}), {self.strata} set-ups; {self.failing / self.rows:.0%} fail.",
            "Means and 95 % intervals. Spearman within set-ups; two seeds of one set-up",
            f"agree to {self.ceiling or 'an unknown degree'}. Regret: accuracy lost by the first pick.",
            "",
        ]
        lines: list[tuple[str, ...]] = [("", "Spearman", "AUROC fails", "regret")]
        for title, scores in self.groups:
            lines += [(title.upper(),), *(_cells(s) for s in scores)]
        widths = [max(len(line[i]) for line in lines if len(line) > i) for i in range(4)]
        table = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=False)).rstrip() for line in lines]
        missing = [f"{s.name} {s.missing}" for _, scores in self.groups for s in scores if s.missing]
        note = textwrap.wrap(f"Trainings without a value: {', '.join(missing)}.", 80) if missing else []
        return "\n".join([*head, *table, *note])


def parts(study: Study) -> tuple[str, ...]:
    """Names of the parts that a study's trainings fall into.

    With a split: ``development``, ``held-out`` and ``held-out:norm`` for each of its lines; every list of the study
    by its name, and ``name:norm`` for what one line of the split holds out of it.
    """
    lines = [name for name, _ in study.held_out]
    groups = [*(["held-out"] if lines else []), *(name for name, _ in study.lists)]
    split = ["development"] if lines else []
    return ("all", *split, *(part for group in groups for part in (group, *(f"{group}:{line}" for line in lines))))


def members(study: Study, rows: Sequence[Entry], part: str) -> list[Entry]:
    """The trainings of one of :func:`parts`."""
    group, _, line = part.partition(":")
    if group == "all":
        return list(rows)
    if group == "development":
        return [e for e in rows if not e.row.get("held_out")]
    listed = set(dict(study.lists).get(group, ()))
    chosen = [e for e in rows if (e.row.get("held_out") if group == "held-out" else e.row["id"] in listed)]
    return [e for e in chosen if not line or line in str(e.row.get("held_out_by", "")).split()]


def scorecard(study: Study, table: Sequence[Mapping[str, Any]], *, part: str = "all", draws: int = 1000) -> Scorecard:
    """Score the verdict, the learned score, the probe's features and the baselines on a study's results.

    Args:
        study: tells which arguments make a stratum: all that vary, but ``norm`` and ``seed``.
        table: flat rows of its results; verdicts are those of the present rules, see :mod:`layerscope.study.rejudge`.
        part: one of :func:`parts`; ``held-out:norm`` are the trainings of held-out norms, in whatever network.
        draws: bootstrap samples.

    Raises:
        StudyError: no such part, or nothing to score.
    """
    if part not in parts(study):
        raise StudyError(f"no part {part!r}: {did_you_mean(part, parts(study))}")
    everything = entries(rejudged(table), strata_columns(study))
    rows = members(study, everything, part)
    if not rows:
        raise StudyError(f"there is no finished training to score in part {part!r}")
    developed = [e for e in everything if not e.row.get("held_out")]

    def scored(scores: Mapping[str, Score]) -> tuple[Scored, ...]:
        return tuple(evaluate(name, rows, [score(e) for e in rows], draws=draws) for name, score in scores.items())

    def known(name: str, among: Sequence[Entry]) -> Scored:
        places = dict(zip((e.row["id"] for e in everything), reputation(everything, among=among), strict=True))
        return evaluate(name, rows, [places[i] for i in (e.row["id"] for e in rows)], draws=draws)

    fitted = evidence.load()
    learned: dict[str, dict[str, Score]] = {"init": {}, "micro": {}}
    for name, formula in fitted.scores.items():
        title, _, kind = name.partition(" ")
        title = {"probe": "learned, probe only"}.get(title, title)
        learned[kind][title if kind == "init" else f"{title} with steps"] = lambda entry, f=formula: f.expected(
            entry.row
        )  # type: ignore[misc]
    return Scorecard(
        rows=len(rows),
        strata=len({e.stratum for e in rows}),
        failing=sum(e.fails for e in rows),
        part=part,
        ceiling=ceiling(rows, draws=draws),
        groups=(
            ("from initialization", scored({**INIT, **learned["init"]})),
            ("with 20 real steps", scored({**MICRO, **learned["micro"]})),
            (
                "baselines",
                (
                    *scored(BASELINES),
                    known("reputation elsewhere", everything),
                    *((known("reputation, development", developed),) if part not in ("all", "development") else ()),
                ),
            ),
        ),
    )


def strata_columns(study: Study) -> list[str]:
    """The arguments that tell set-ups apart."""
    return [name for name, values in study.distinct().items() if len(values) > 1 and name not in ("norm", "seed")]


def _label(column: str) -> Score:
    """A verdict's label, from ``fails`` 0 to ``healthy`` 4; None for ``unknown``."""

    def score(entry: Entry) -> float | None:
        label = entry.row.get(column)
        return float(_LABELS.index(label)) if label in _LABELS else None

    return score


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
INIT: dict[str, Score] = {
    "verdict": _label("verdict"),
    "pooled similarity": _feature("init.cosine_pooled", -1.0),
    "forward scale": _near_one("init.ms_last"),
    "gradient ratio": _near_one("init.grad_ratio"),
    "batch noise": _feature("init.batch_noise", -1.0),
    "sharpness": _feature("init.sharpness", -1.0),
}

#: What it says after a few real steps on a copy.
MICRO: dict[str, Score] = {
    "verdict with steps": _label("micro.verdict"),
    "loss drop": _feature("micro.drop"),
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
    return (f"  {s.name}", *(str(v) if v else "-" for v in (s.spearman, s.auroc, s.regret)))
