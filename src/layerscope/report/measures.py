"""The quantities that a report draws along depth, each with its scale, its colours and a sentence on good and bad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerscope.probe.records import LayerRecord, Profile
from layerscope.report import numbers
from layerscope.report.layers import Path
from layerscope.report.numbers import cosine, short
from layerscope.report.scales import Kind, nines
from layerscope.verdict.types import AxisName

#: Powers of ten at which the heat map reaches its ends; the same in every report, so that colours can be compared.
DECADES = 4


@dataclass(frozen=True)
class Measure:
    """One quantity along depth."""

    name: str
    pick: Callable[[LayerRecord], float | None]
    kind: Kind
    write: Callable[[float | None], str]
    meaning: str
    """What the number is, in one sentence."""
    readout: Callable[[Profile], float | None] | None = None
    """The same quantity at the classifier input, shown behind the last site."""
    relative_to_last: bool = False
    """Curves show the quantity divided by its value at the last site."""

    def strengths(self, values: Sequence[float | None]) -> list[float | None]:
        """The heat map's row: how far from quiet, in [-1, 1].

        Similarities by their nines, up to 0.999; everything else by its ratio to the first site (to the last, for
        what runs backward), 10^4 at the ends.
        """
        if self.kind == "nines":
            return [None if v is None else v if math.isnan(v) else max(nines(v), 0.0) / 3 for v in values]
        ordered = list(reversed(values)) if self.relative_to_last else values
        first = next((v for v in ordered if v is not None and v > 0 and math.isfinite(v)), None)
        return [None if v is None or first is None else _log_ratio(v, first) for v in values]


def _log_ratio(value: float, first: float) -> float:
    if math.isnan(value) or value < 0:
        return math.nan
    if value == 0:
        return -1.0
    return 1.0 if math.isinf(value) else math.log10(value / first) / DECADES


@dataclass(frozen=True)
class Panel:
    """One axis of the verdict as a picture."""

    axis: AxisName
    path: Path
    title: str
    question: str
    reading: str
    """Under the picture: what is good and what is bad."""
    measures: tuple[Measure, ...]
    key: tuple[str, ...] = ()
    """Values at the ends (and middle) of the heat map's colours."""


_FORWARD = Panel(
    "F",
    "forward",
    "Forward: the size of the activations",
    "Does the signal keep its scale on the way to the output?",
    "Good: level lines, or a gentle rise that starts again where the map shrinks; a faint heat map. Bad: a straight "
    "climb on this logarithmic axis, which is exponential growth, or a fall toward zero; strong orange or blue.",
    (
        Measure("second moment", lambda r: r.ms, "log", short, "mean of x² over samples, channels and positions"),
        Measure("variance", lambda r: r.variance, "log", short, "over samples and positions, mean over channels"),
    ),
    key=("÷10⁴", "first layer", "×10⁴"),
)
_INFORMATION = Panel(
    "I",
    "forward",
    "Information: how alike different samples look",
    "Can the classifier still tell two inputs apart?",
    "Good: low and staying low, so that the classifier sees different inputs as different. Bad: a climb toward 1, "
    "where all inputs look the same and learning is slow; strong orange. The axis is stretched toward 1.",
    (
        Measure(
            "cosine",
            lambda r: r.cosine,
            "nines",
            cosine,
            "mean cosine over pairs of different samples",
            readout=lambda p: p.readout_cosine,
        ),
        Measure(
            "cosine, pooled",
            lambda r: r.cosine_pooled,
            "nines",
            cosine,
            "the same after averaging over positions",
            readout=lambda p: p.readout_cosine,
        ),
    ),
    key=("0", "0.9", "0.99", "0.999"),
)
_BACKWARD = Panel(
    "B",
    "backward",
    "Backward: the gradient on its way to the input",
    "Do early layers get a gradient of the same size as late ones?",
    "Good: level lines near 1, so that one learning rate suits all layers. Bad: a climb toward the input on the left "
    "(early layers jump, training is unstable) or a fall (early layers stand still).",
    (
        Measure(
            "scale-free gradient",
            lambda r: r.grad_scaled,
            "log",
            short,
            "|dLoss/du| · rms(u), as a multiple of the last layer's",
            relative_to_last=True,
        ),
        Measure(
            "raw gradient",
            lambda r: r.grad_norm,
            "log",
            short,
            "|dLoss/du|, as a multiple of the last layer's; depends on the scale of the input",
            relative_to_last=True,
        ),
    ),
    key=("÷10⁴", "last layer", "×10⁴"),
)
PANELS = (_FORWARD, _INFORMATION, _BACKWARD)


def axis_number(name: AxisName, value: float | None) -> str:
    """An axis's headline number as it is read: a growth factor, a cosine, a ratio, nu."""
    if value is None:
        return numbers.MISSING
    if name == "I":
        return numbers.cosine(1 - value)
    return numbers.short(value, 2) if name == "N" else numbers.times(value)


AXIS_TITLES: dict[AxisName, tuple[str, str]] = {
    "F": ("Forward", "growth per step"),
    "I": ("Information", "cosine of samples"),
    "B": ("Backward", "gradient, first/last"),
    "N": ("Noise", "of the batch"),
}
