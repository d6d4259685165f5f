"""From the levels of the axes to one label and its cause: the rule list itself, on plain values.

Kept apart from measuring, so that the same rules can be applied again to the rows of a study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerscope.verdict.thresholds import Thresholds
from layerscope.verdict.types import Label, Level

Cause = Literal[
    "forward",
    "sets",
    "noise",
    "steps diverged",
    "steps learn",
    "backward",
    "steps stuck",
    "informative",
    "none",
    "unknown",
]


#: Steps from which on growth may be read as a law.
LONG = 5


@dataclass(frozen=True)
class Facts:
    """All that the rules look at."""

    forward: Level
    informative: Level
    backward: Level
    noise: Level
    cut: bool = False
    """No gradient reaches some trainable layer."""
    shrinks: bool = False
    """The gradient gets smaller toward the input, not larger."""
    tiny_sets: bool = False
    """Some statistic is taken over too few elements."""
    inactive: bool = False
    """Residual branches add nothing yet, so what they will do cannot be seen."""
    diverged: bool = False
    """Real steps diverged."""
    learns: bool = False
    """Real steps brought the loss well down."""
    stuck: bool = False
    """Real steps did not bring the loss down."""


def decide(facts: Facts) -> tuple[Label, Cause]:
    """The label and what decided it; the first rule that matches wins."""
    if facts.cut:
        return "fails", "backward"
    if facts.noise == "bad" and (facts.forward != "bad" or facts.learns):
        return "unstable", "noise"  # a matter of evaluation, which real training steps do not show
    if facts.learns:
        return "healthy", "steps learn"
    if facts.forward == "bad":
        return "fails", "forward"
    if facts.tiny_sets:
        return "unstable", "sets"
    if facts.diverged:
        return "unstable", "steps diverged"
    if facts.backward == "bad":
        return ("very slow" if facts.shrinks else "unstable"), "backward"
    if facts.informative == "bad":
        return "very slow", "informative"
    if facts.stuck:
        return "very slow", "steps stuck"
    if facts.informative == "caution" and not facts.inactive:
        return "slow", "informative"
    if facts.forward == facts.informative == facts.backward == "unknown":
        return "unknown", "unknown"
    return "healthy", "none"


def forward_level(factor: float, exponential: bool, kept: float, steps: int, limits: Thresholds) -> Level:
    """The level of axis F.

    Growth counts as an explosion only if the end of the main path is beyond its start: several branches, read one after
    the other, go up and down, and a few steps have to show more than many, for they cannot show a law.

    Args:
        factor: growth of the second moment per step, over the tail of every stage.
        exponential: the growth follows an exponential better than a straight line.
        kept: last second moment over the first.
        steps: values that it was read from.
        limits: the cut-offs.
    """
    lasting = steps >= LONG and kept > 0 and kept ** (1 / (steps - 1)) > limits.growth_caution
    if factor > limits.growth_bad and exponential and (not kept < limits.growth_total or lasting):
        return "bad"
    if not kept > limits.vanish_bad:
        return "bad"
    return "caution" if kept < limits.vanish_caution or factor > limits.growth_caution else "good"
