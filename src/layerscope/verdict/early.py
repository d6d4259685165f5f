"""What a few real steps say, from their losses alone: training breaks, or nothing is learned. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerscope.verdict.thresholds import DEFAULT, Thresholds

#: Losses averaged at the end.
TAIL = 3


def is_diverged(losses: Sequence[float], limits: Thresholds = DEFAULT) -> bool:
    """Not finite, or at the end far above where it began."""
    end = sum(losses[-TAIL:]) / len(losses[-TAIL:])
    return not math.isfinite(end) or end > limits.steps_worse * losses[0]


def is_learning(losses: Sequence[float], limits: Thresholds = DEFAULT, *, classes: int | None = None) -> bool:
    """The loss is well below where it began, and below that of guessing evenly among ``classes``.

    The network then trains, whatever its initialization looked like. A first loss above guessing, as exploding networks
    have it, is no feat to come down from.
    """
    end = sum(losses[-TAIL:]) / len(losses[-TAIL:])
    start = min(losses[0], math.log(classes)) if classes and classes > 1 else losses[0]
    return end <= (1.0 - limits.steps_learn) * start


def is_stuck(losses: Sequence[float], limits: Thresholds = DEFAULT) -> bool:
    """The loss at the end is not below where it began."""
    end = sum(losses[-TAIL:]) / len(losses[-TAIL:])
    return end > (1.0 - limits.steps_stuck) * losses[0]
