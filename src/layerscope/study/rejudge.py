"""The verdict of a finished trial by the present rules and cut-offs, from what its row holds.

A study's rows keep the numbers, not the whole profile, so that rules can change without training again. The cut-offs of
the axes I and B are those that the trial was run with; F and N are judged anew, as are the real steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from layerscope.verdict.decision import Facts, decide, forward_level
from layerscope.verdict.early import is_diverged, is_learning, is_stuck
from layerscope.verdict.features import number
from layerscope.verdict.thresholds import DEFAULT, Thresholds
from layerscope.verdict.types import Label, Level

#: Classes of the data sets that are bundled or known by name for studies (digits, Fashion-MNIST, CIFAR-10).
CLASSES = 10

#: Cut-off on the growth factor at the time of the run: a larger factor without a bad level was not exponential.
_GROWTH_THEN = 1.5


def rejudge(row: Mapping[str, Any], limits: Thresholds = DEFAULT) -> tuple[Label, Label]:
    """Labels from initialization alone, and with the real steps.

    Args:
        row: a flat row of a trial that ran :func:`layerscope.study.trials.probe_and_train`.
        limits: cut-offs.
    """
    noise, forward, backward = _level(row, "N"), _forward(row, limits), _level(row, "B")
    nu = number(row, "axes.N")
    if noise != "unknown" and nu is not None:
        noise = "bad" if not nu <= limits.noise_bad else "caution" if nu > limits.noise_caution else "good"
    ratio = number(row, "axes.B")
    facts = Facts(
        forward=forward,
        informative=_level(row, "I"),
        backward=backward,
        noise=noise,
        shrinks=ratio is not None and ratio < 1,
        tiny_sets=row.get("verdict") == "unstable" and "bad" not in (_level(row, "N"), backward),
        inactive="skipinit=true" in str(row.get("net")),
    )
    losses = [float(v) for v in _series(row, "micro.losses")]
    if not losses:
        return decide(facts)[0], decide(facts)[0]
    lost = is_diverged(losses, limits)
    steps = {
        "diverged": lost,
        "learns": not lost and is_learning(losses, limits, classes=CLASSES),
        "stuck": is_stuck(losses, limits),
    }
    seen = Facts(**{**vars(facts), **steps})
    return decide(facts)[0], decide(seen)[0]


def rejudged(table: Sequence[Mapping[str, Any]], limits: Thresholds = DEFAULT) -> list[dict[str, Any]]:
    """Flat rows with ``verdict`` and ``micro.verdict`` by the present rules; rows without series stay as they are."""
    found = []
    for row in table:
        if row.get("state") == "done" and "series.ms" in row:
            before, after = rejudge(row, limits)
            found.append({**row, "verdict": before, "micro.verdict": after})
        else:
            found.append(dict(row))
    return found


def _forward(row: Mapping[str, Any], limits: Thresholds) -> Level:
    stored, factor = _level(row, "F"), number(row, "axes.F")
    if stored == "unknown" or factor is None or not math.isfinite(factor):
        return stored
    ms = [float(v) for v in _series(row, "series.ms") if v is not None]
    if len(ms) < 2 or ms[0] <= 0:
        return stored
    exponential = stored == "bad" or factor <= _GROWTH_THEN
    return forward_level(factor, exponential, ms[-1] / ms[0], len(ms), limits)


def _level(row: Mapping[str, Any], axis: str) -> Level:
    found = row.get(f"levels.{axis}")
    return found if found in get_args(Level) else "unknown"  # type: ignore[return-value]


def _series(row: Mapping[str, Any], name: str) -> list[Any]:
    found = row.get(name, [])
    return json.loads(found) if isinstance(found, str) else list(found)
