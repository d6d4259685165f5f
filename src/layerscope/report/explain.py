"""The words around the pictures: how to read them, what they cannot tell, how to repeat the measurement."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.report.looks import LABEL_LOOKS, tag
from layerscope.report.markup import Html, el, join
from layerscope.verdict.thresholds import DEFAULT
from layerscope.verdict.types import Label

_LABELS: dict[Label, str] = {
    "healthy": "no axis raises an alarm; train it as you would.",
    "slow": "samples look alike at the classifier; training works, but takes longer.",
    "very slow": "samples can hardly be told apart, or early layers get almost no gradient.",
    "unstable": "gradients grow toward the input, or the batch drowns the sample; a normal learning rate is too high.",
    "fails": "activations explode or vanish exponentially with depth, or are not finite.",
    "unknown": "nothing could be said; the reason stands beside it.",
}


def _axes() -> tuple[tuple[str, str], ...]:
    t = DEFAULT
    return (
        ("Forward", f"Growth of the mean square of the activations from one step to the next, over the later half of each "
         f"stage. A linear law reads about ×1.16; beyond ×{t.growth_caution:g} is a caution, exponential growth beyond "
         f"×{t.growth_bad:g} is bad."),
        ("Alike", f"Mean cosine between different samples, at the last map or the classifier input, whichever is higher. "
         f"Above {1 - t.informative_caution:g} is slow, above {1 - t.informative_bad:g} very slow."),
        ("Backward", f"Scale-free gradient |dLoss/du| · rms(u) of the first layer over that of the last. In a plain net beyond "
         f"×{t.gradient_caution:g} is a caution, beyond ×{t.gradient_bad:g} unstable; a residual stream bears "
         f"×{t.gradient_bad_residual:g}."),
        ("Noise", f"Batch-noise ratio ν: how much a sample's features vary with the other samples of its batch, over how much "
         f"they vary between samples. Beyond {t.noise_caution:g} is a caution, beyond {t.noise_bad:g} unstable. 0 for layers "
         f"that do not see the batch."),
    )  # fmt: skip


def how_to_read() -> Html:
    """Labels and axes in words."""
    labels = join(join([el("dt", tag(LABEL_LOOKS[name], name)), el("dd", text)]) for name, text in _LABELS.items())
    axes = join(join([el("dt", el("b", name)), el("dd", text)]) for name, text in _axes())
    return el(
        "section",
        el("h2", "How to read this"),
        el("div", el("dl", labels), el("dl", axes), class_="ls-side"),
        el(
            "p",
            "Colour strength grows with distance from quiet: a faint heat map is a good one. Blue shrinks, orange grows. "
            "Where several seeds were probed, lines are medians and bands reach from the lowest to the highest.",
        ),
        class_="ls-words",
    )


def what_it_cannot_tell() -> Html:
    """The limits of a probe at initialization."""
    points = (
        "It sees the network at its present weights, once. What a high learning rate does after the first steps, or how "
        "weight decay and schedules play in, does not show.",
        "It says how training will start, not how well the trained network will generalize or what accuracy it will reach.",
        "The thresholds separate clear cases. Near a threshold, trust the curves more than the word.",
        "Other data, another batch size or another input scale can change similarities and batch noise: probe with yours.",
    )
    return el(
        "section", el("h2", "What this cannot tell"), el("ul", join(el("li", p) for p in points)), class_="ls-words"
    )


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
