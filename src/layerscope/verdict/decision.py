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
    silent: bool = False
    """Gradients reach every layer and are nothing beside its weights."""
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
    if facts.silent:
        return "fails", "backward"
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


def backward_level(ratio: float, layers: int, residual: bool, limits: Thresholds) -> Level:
    """The level of axis B: does the gradient grow, or vanish, toward the input?

    Args:
        ratio: scale-free gradient, first over last layer.
        layers: how many of them there are.
        residual: they are the blocks of a residual stream.
        limits: the cut-offs.
    """
    caution, bad = limits.gradient(layers, residual=residual)
    if not ratio <= bad or ratio < limits.gradient_vanish_bad:
        return "bad"
    return "caution" if ratio > caution or ratio < limits.gradient_vanish_caution else "good"


def noise_level(nu: float, batch_size: int, limits: Thresholds) -> Level:
    """The level of axis N: nu against its limit at this batch size."""
    if not nu <= limits.noise_bad * batch_size:
        return "bad"
    return "caution" if nu > limits.noise_caution else "good"


def informative_level(unpooled: float, pooled: float, stream_blocks: int | None, limits: Thresholds) -> Level:
    """The level of axis I for anything but tokens: by the last map and by the classifier input, the worse of the two.

    Averaging over positions brings samples together whatever the network (what differs between them is partly noise of
    single positions), so what is pooled may be more alike before it counts.

    Args:
        unpooled: 1 - cosine between samples at the last map.
        pooled: the same at the classifier input; the same number again where nothing is pooled.
        stream_blocks: blocks of the last stage of a non-negative residual stream, None for every other network.
        limits: the cut-offs.
    """
    is_pooled = pooled != unpooled
    levels = [(unpooled, limits.informative(stream_blocks, pooled=False))]
    if is_pooled:
        levels.append((pooled, limits.informative(stream_blocks, pooled=True)))
    if any(score < bad for score, (_, bad) in levels):
        return "bad"
    return "caution" if any(score < caution for score, (caution, _) in levels) else "good"


def have_collapsed(first: float, last: float, pooled: bool, limits: Thresholds) -> bool:
    """Whether the tokens of one sample have become alike: by their cosine after the first and the last block.

    Tokens that are alike from the start, such as patches of a blank background, are no fault of the network: their
    distance, 1 - cosine, has to have shrunk, too.

    Args:
        first: cosine after the first block.
        last: after the last one.
        pooled: the mean token is classified, not every one.
        limits: the cut-offs.
    """
    limit = limits.token_cosine_bad_pooled if pooled else limits.token_cosine_bad
    return last > limit and (1.0 - last) * limits.token_shrinks < 1.0 - first


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
