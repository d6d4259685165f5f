"""The learned score: one logistic formula that turns a probe's numbers into an expected mean training accuracy.

    expected = sigmoid(bias + sum_k weight_k * (term_k - centre_k) / scale_k)

of (accuracy - chance) / (1 - chance) over the first 200 steps; 0 means that nothing will be learned. A term that cannot
be computed counts as average. Terms are few and named, so that :func:`explain` can say what speaks for and against a
choice. Weights come from the development part of the committed study (``verdict/evidence.json``); the rules of
``verdict.rules`` decide the label, this score only orders choices that share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerscope.verdict.features import number

Row = Mapping[str, Any]
Term = Callable[[Row], float | None]


def _log(name: str, low: float = 1e-6, high: float = 1e6) -> Term:
    """log10 of a feature, clipped; not-a-number counts as ``high``."""

    def term(row: Row) -> float | None:
        value = number(row, name)
        if value is None:
            return None
        return math.log10(high if math.isnan(value) else min(max(value, low), high))

    return term


def _size(name: str, high: float = 6.0) -> Term:
    """How many powers of ten a feature is away from 1, either way."""
    inner = _log(name, 10**-high, 10**high)

    def term(row: Row) -> float | None:
        value = inner(row)
        return None if value is None else abs(value)

    return term


def _distance(row: Row) -> float | None:
    """log10(1 - cosine) between samples, of the last map or the classifier input, whichever is closer to collapse."""
    cosines = [c for c in (number(row, "init.cosine"), number(row, "init.cosine_pooled")) if c is not None]
    if not cosines:
        return None
    worst = max(cosines)
    return -4.0 if math.isnan(worst) else math.log10(min(max(1.0 - worst, 1e-4), 2.0))


def _token_distance(row: Row) -> float | None:
    cosine = number(row, "init.cosine_token")
    return None if cosine is None else -4.0 if math.isnan(cosine) else math.log10(min(max(1.0 - cosine, 1e-4), 2.0))


def _with_rate(name: str) -> Term:
    """log10 of learning rate times a feature."""
    inner = _log(name, 1e-8, 1e8)

    def term(row: Row) -> float | None:
        value, lr = inner(row), number(row, "lr")
        return None if value is None or not lr else max(-5.0, min(value + math.log10(lr), 5.0))

    return term


def _classes(row: Row) -> float:
    """Number of classes; two where there is one output, so that the loss of guessing is not 0."""
    return max(number(row, "classes") or 10.0, 2.0)


def _excess_loss(row: Row) -> float | None:
    """Loss at initialization above that of guessing evenly, as log10(1 + excess)."""
    loss, classes = number(row, "init.probe_loss"), _classes(row)
    if loss is None:
        return None
    return 3.0 if not math.isfinite(loss) else min(math.log10(1.0 + max(0.0, loss - math.log(classes))), 3.0)


def _overshoot(row: Row) -> float | None:
    """Powers of ten by which learning rate times sharpness exceeds the edge of stability, 2; 0 below it."""
    value = _with_rate("init.sharpness")(row)
    return None if value is None else max(0.0, value - math.log10(2.0))


def _drop(row: Row) -> float | None:
    drop = number(row, "micro.drop")
    return None if drop is None else -1.0 if math.isnan(drop) else max(-1.0, min(drop, 1.0))


def _worst(row: Row) -> float | None:
    """Largest loss of the real steps over that of guessing evenly, log10."""
    worst, classes = number(row, "micro.worst"), _classes(row)
    if worst is None:
        return None
    return 3.0 if not math.isfinite(worst) else min(max(math.log10(max(worst, 1e-3) / math.log(classes)), 0.0), 3.0)


def _end(row: Row) -> float | None:
    """Loss at the end of the real steps over that of guessing evenly; at most 2."""
    end, classes = number(row, "micro.loss"), _classes(row)
    if end is None:
        return None
    return 2.0 if not math.isfinite(end) else min(end / math.log(classes), 2.0)


#: Every term by name. Which of them a score uses is part of its data.
TERMS: dict[str, Term] = {
    "dissimilarity": _distance,
    "token dissimilarity": _token_distance,
    "forward scale": _size("init.ms_last"),
    "largest activation": _log("init.ms_max"),
    "gradient ratio": _log("init.grad_ratio", 1e-4, 1e4),
    "gradient imbalance": _size("init.grad_ratio", 4.0),
    "batch noise": _log("init.batch_noise", 1e-2, 1e2),
    "effective rank": _log("init.effective_rank", 1.0, 1e3),
    "spread": _log("init.spread", 1e-4, 10.0),
    "excess loss": _excess_loss,
    "rate x gradient": _with_rate("init.gradient"),
    "rate x sharpness": _with_rate("init.sharpness"),
    "overshoot": _overshoot,
    "rate x update": _with_rate("init.update_max"),
    "learning rate": _log("lr"),
    "batch size": _log("batch_size", 1.0),
    "depth": _log("depth", 1.0, 1e4),
    "loss drop": _drop,
    "worst loss": _worst,
    "end loss": _end,
    "diverged": lambda row: number(row, "micro.diverged"),
}


@dataclass(frozen=True)
class Foresight:
    """A fitted formula: plain numbers, one of each for every term."""

    terms: tuple[str, ...]
    weights: tuple[float, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    bias: float

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Foresight:
        """From ``{"bias": ..., "terms": {name: {"weight": ..., "centre": ..., "scale": ...}}}``."""
        terms: Mapping[str, Mapping[str, float]] = data["terms"]
        weights, centres, scales = (tuple(t[k] for t in terms.values()) for k in ("weight", "centre", "scale"))
        return cls(tuple(terms), weights, centres, scales, data["bias"])

    def to_plain(self) -> dict[str, Any]:
        """What :meth:`from_plain` reads."""
        numbers = zip(self.terms, self.weights, self.centres, self.scales, strict=True)
        return {
            "bias": self.bias,
            "terms": {name: {"weight": w, "centre": c, "scale": s} for name, w, c, s in numbers},
        }

    def expected(self, row: Row) -> float:
        """Expected mean training accuracy above chance, from 0 to 1."""
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(self.bias + sum(self.parts(row).values()), 30.0))))

    def parts(self, row: Row) -> dict[str, float]:
        """What every term adds to the log-odds; 0 where it is average or unknown."""
        found = {}
        for name, weight, centre, scale in zip(self.terms, self.weights, self.centres, self.scales, strict=True):
            value = TERMS[name](row)
            found[name] = 0.0 if value is None else weight * (value - centre) / scale
        return found


def design(rows: Sequence[Row], terms: Sequence[str]) -> list[list[float | None]]:
    """The terms of every row."""
    return [[TERMS[name](row) for name in terms] for row in rows]
