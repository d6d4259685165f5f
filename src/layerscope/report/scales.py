"""From a value to a place between 0 and 1: linear, logarithmic, and "nines" for similarities close to 1.

Every scale answers ``at(value)`` with None for what has no place (missing, NaN, and on a logarithmic axis the
negative); what lies beyond an end, infinities included, is put at that end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from layerscope.report import numbers

Kind = Literal["linear", "log", "nines"]
#: Nothing is drawn beyond this many powers of ten; float32 itself ends at 38.
FARTHEST = 40
#: Bound on a linear axis, so that the distance between its ends is finite.
LARGEST = 1e300


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``, both finite and ``low < high``."""

    kind: Kind
    low: float
    high: float

    def at(self, value: float | None) -> float | None:
        """Place of ``value``: 0 at ``low``, 1 at ``high``."""
        if value is None or math.isnan(value) or (self.kind == "log" and value < 0):
            return None
        low, high = _bend(self.kind, self.low), _bend(self.kind, self.high)
        return min(max((_bend(self.kind, value) - low) / (high - low), 0.0), 1.0)

    def ticks(self, most: int = 6) -> tuple[tuple[float, str], ...]:
        """At most about ``most`` round values on the axis, with their labels."""
        if self.kind == "nines":
            ladder = (-0.5, 0.0, 0.5, 0.9, 0.97, 0.99, 0.999, 0.9999)
            return tuple((v, f"{v:g}") for v in ladder if self.low <= v <= self.high)
        if self.kind == "log":
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / most))
            return tuple((10.0**e, numbers.power(e)) for e in range(first, last + 1) if e % step == 0)
        raw = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(raw))
        step_f = next(s * size for s in (1, 2, 5, 10) if s * size >= raw * (1 - 1e-9))
        count = math.floor((self.high - self.low) / step_f + 1e-9)
        start = math.ceil(self.low / step_f - 1e-9)
        values = [(start + i) * step_f for i in range(count + 1)]
        return tuple((v, f"{v:.10g}") for v in values if v <= self.high * (1 + 1e-9) + 1e-12)


def _bend(kind: Kind, value: float) -> float:
    """The quantity that is linear along the axis."""
    if kind == "log":
        return max(math.log10(value), -FARTHEST) if value > 0 else -FARTHEST
    if kind == "nines":
        return nines(value)
    return value


def nines(cosine: float) -> float:
    """-log10(1 - c): 0 for 0, 1 for 0.9, 2 for 0.99. Similarities differ where they come close to 1.

    Cut at 0.99999, below which float32 no longer tells samples apart.
    """
    return -math.log10(max(1 - cosine, 1e-5))


def fit(kind: Kind, values: Iterable[float | None], include: Sequence[float] = ()) -> Scale:
    """The scale that shows all finite ``values`` and ``include``; never empty, also for one value or none."""
    finite = [v for v in (*values, *include) if v is not None and math.isfinite(v)]
    if kind == "log":
        exponents = [min(max(math.log10(v), -FARTHEST), FARTHEST) for v in finite if v > 0] or [0.0]
        low, high = min(exponents), max(exponents)
        # Two decades at least: on a log axis that fills the picture, noise of one per cent would look like a cliff.
        slack = max(0.0, 2 - (high - low)) / 2 + 0.04 * (high - low)
        return Scale("log", 10 ** (low - slack), 10 ** (high + slack))
    if kind == "nines":
        return Scale("nines", min([0.0, *finite]), min(max([0.99, *finite]), 0.99999))
    finite = [min(max(v, -LARGEST), LARGEST) for v in finite]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        width = abs(high) / 2 or 1.0
        return Scale("linear", low - width, high + width)
    slack = 0.04 * (high - low)
    return Scale("linear", low if low in include else low - slack, high if high in include else high + slack)
