"""The words around the pictures: how to read them, what they cannot tell, how to repeat the measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerscope.report import numbers
from layerscope.report.looks import LABEL_LOOKS, tag
from layerscope.report.markup import Html, el, join
from layerscope.verdict.thresholds import DEFAULT as LIMIT
from layerscope.verdict.types import Label

_LABELS: dict[Label, str] = {
    "healthy": "no axis raises an alarm; train it as you would.",
    "slow": "samples look alike at the classifier; training works, but takes longer.",
    "very slow": "samples can hardly be told apart, or early layers get almost no gradient.",
    "unstable": "gradients grow toward the input, or the batch drowns the sample; a normal learning rate is too high.",
    "fails": "activations explode or vanish exponentially with depth, or are not finite.",
    "unknown": "nothing could be said; the reason stands beside it.",
}

_AXES = {
    "Forward": "Growth of the mean square of the activations from one step to the next, over the later half of each "
    f"stage. A linear law reads about ×1.16; beyond ×{LIMIT.growth_caution:g} is a caution, exponential growth beyond "
    f"×{LIMIT.growth_bad:g} is bad.",
    "Information": "Mean cosine between different samples. At the last map, above "
    f"{1 - LIMIT.informative_caution:g} is slow and above {1 - LIMIT.informative_bad:g} very slow; after pooling, "
    f"which brings all samples together, above {1 - LIMIT.pooled_caution:g} and {1 - LIMIT.pooled_bad:g}. Where a "
    "residual stream only adds what is not negative, all samples share more and the limits lie closer to 1 (dotted).",
    "Backward": "Scale-free gradient |dLoss/du| · rms(u) of the first layer over that of the last. In a plain net, "
    f"beyond ×{LIMIT.gradient_caution:g} is a caution and beyond ×{LIMIT.gradient_bad:g} unstable (in deep ones, "
    "beyond three times what BatchNorm does by itself, ×1.21 a layer); a residual stream "
    f"bears ×{numbers.power(round(math.log10(LIMIT.gradient_bad_residual)))}.",
    "Noise": "Batch-noise ratio ν: how much a sample's features vary with the other samples of its batch, over how "
    f"much they vary between samples. Beyond {LIMIT.noise_caution:g} is a caution, beyond {LIMIT.noise_bad:g} times "
    "the batch size unstable. 0 for layers that do not see the batch.",
}

_COLOURS = (
    "Colour strength grows with distance from quiet: a faint heat map is a good one. Blue shrinks, orange grows. Where "
    "several seeds were probed, lines are medians and bands reach from the lowest to the highest."
)

_LIMITS = (
    "It sees the network once, at its present weights. What a high learning rate does after the first steps, and how "
    "weight decay and schedules play in, does not show.",
    "It says how training will start, not what accuracy it will reach or how well the trained network generalizes.",
    "The thresholds separate clear cases. Near a threshold, trust the curves more than the word.",
    "Other data, another batch size or another input scale change similarities and batch noise: probe with yours.",
)


def how_to_read() -> Html:
    """Labels and axes in words."""
    labels = [join([el("dt", tag(LABEL_LOOKS[name], name)), el("dd", text)]) for name, text in _LABELS.items()]
    axes = [join([el("dt", el("b", name)), el("dd", text)]) for name, text in _AXES.items()]
    lists = el("div", el("dl", *labels), el("dl", *axes), class_="ls-side")
    return el("section", el("h2", "How to read this"), lists, el("p", _COLOURS), class_="ls-words")


def what_it_cannot_tell() -> Html:
    """The limits of a probe at initialization."""
    limits = el("ul", *(el("li", text) for text in _LIMITS))
    return el("section", el("h2", "What this cannot tell"), limits, class_="ls-words")


def repeat(command: str, versions: Sequence[tuple[str, str]]) -> Html:
    """The command and the versions that made the numbers."""
    if not command and not versions:
        return Html("")
    return el(
        "section",
        el("h2", "Repeat it"),
        el("pre", el("code", command)) if command else "",
        el("p", " · ".join(f"{name} {version}" for name, version in versions), class_="ls-facts") if versions else "",
        class_="ls-words",
    )
