"""Which recursion a norm follows: the table from names to laws, and why some have none.

The names are those of the package's norm table; a norm that is not here has no law, and the prediction says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from layerscope.errors import SpecError
from layerscope.spec import Spec, Value
from layerscope.theory.kernels import RELU_GAIN
from layerscope.theory.weight_layers import (
    NO_NORM,
    SCALED_WEIGHT_STANDARDIZATION,
    WEIGHT_CENTRING,
    WEIGHT_NORM,
    WeightLaw,
)

#: What shares a statistic: nothing (``weights``); channels of a sample over all positions (``channels``) or at each
#: position by itself (``point``); samples of one channel over all positions (``samples``).
Family = Literal["weights", "channels", "point", "samples"]

#: Stands for infinitely many channels where no width is given.
MANY = 1 << 14


@dataclass(frozen=True)
class Law:
    """The recursion of one norm, without its sizes."""

    family: Family
    centred: bool = True
    share: Literal["all", "one", "given"] = "all"
    """Channels that share a statistic, for the family ``channels``."""
    weights: WeightLaw = NO_NORM
    filters_centred: bool = False
    """Filters have mean zero (weight standardization before the norm)."""
    size: int | None = None
    """Given channels per group, or samples per ghost batch."""
    groups: int | None = None

    def units(self, width: int | None, batch_size: int | None) -> int | str:
        """Channels or samples in one statistic set; a sentence where that cannot be told."""
        if self.family == "weights":
            return 1
        if self.family == "samples":
            if batch_size is None:
                return "the batch size is not given"
            return min(batch_size, self.size) if self.size else batch_size
        if self.share == "one":
            return 1
        if self.share == "given" and self.size is not None:
            return min(self.size, width) if width else self.size
        if self.share == "given" and self.groups is not None and self.groups > 1:
            return max(1, width // self.groups) if width else "the width is not given, and groups= needs it"
        return width or MANY


@dataclass(frozen=True)
class NoLaw:
    """Why a norm has no recursion here."""

    reason: str


def law_of(spec: Spec) -> Law | NoLaw:
    """The law of a norm choice.

    Raises:
        SpecError: a group norm without exactly one of ``size`` and ``groups``, or with one that is not a positive whole
            number.
    """
    if spec.name in _NO_LAW:
        return NoLaw(_NO_LAW[spec.name])
    if spec.name not in _LAWS:
        return NoLaw(f"no recursion is known for {spec.name!r}")
    return _LAWS[spec.name](spec)


def covered() -> tuple[str, ...]:
    """Names of the norms that have a law."""
    return tuple(_LAWS)


def _group(spec: Spec, default_groups: int | None = None, filters_centred: bool = False) -> Law:
    size, groups = _count(spec, "size"), _count(spec, "groups")
    if size is None and groups is None:
        groups = default_groups
    if (size is None) == (groups is None):
        raise SpecError(f"{spec} needs exactly one of size= and groups=: {spec.name}:size=8 or {spec.name}:groups=8")
    return Law("channels", share="given", size=size, groups=groups, filters_centred=filters_centred)


def _count(spec: Spec, key: str) -> int | None:
    value: Value | None = spec.kwargs.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{spec}: {key} must be a whole number of at least 1, got {value!r}")
    return value


def _sws(spec: Spec) -> Law:
    gain = spec.kwargs.get("gain", RELU_GAIN)
    if isinstance(gain, bool) or not isinstance(gain, int | float) or gain <= 0:
        raise SpecError(f"{spec}: gain must be a positive number, got {gain!r}")
    if gain == RELU_GAIN:
        return Law("weights", weights=SCALED_WEIGHT_STANDARDIZATION)
    return Law("weights", weights=WeightLaw(float(gain) ** 2, centred=True))


def _weight(spec: Spec) -> Law:
    scaled = spec.kwargs.get("scaled", True)
    return Law("weights", weights=WEIGHT_NORM if scaled else WeightLaw(1.0))


def _batch(spec: Spec) -> Law | NoLaw:
    if spec.kwargs.get("gain", 1.0) != 1.0:
        return NoLaw("the recursion is for an initial weight of 1")
    return Law("samples")


def _fixed(law: Law) -> Callable[[Spec], Law]:
    return lambda spec: law


_LAWS: Mapping[str, Callable[[Spec], Law | NoLaw]] = {
    "none": _fixed(Law("weights")),
    "batch": _batch,
    "ghost": lambda spec: Law("samples", size=_count(spec, "size") or 32),
    "layer": _fixed(Law("channels")),
    "instance": _fixed(Law("channels", share="one")),
    "group": _group,
    "ws-group": lambda spec: _group(spec, filters_centred=True),
    "frn": _fixed(Law("channels", centred=False, share="one")),
    "variance": _fixed(Law("samples", centred=False)),
    "rms": _fixed(Law("point", centred=False)),
    "scale": _fixed(Law("point", centred=False)),
    "layer2d": _fixed(Law("point")),
    "weight": _weight,
    "sws": _sws,
    "weight-centred": _fixed(Law("weights", weights=WEIGHT_CENTRING)),
    "grn": _fixed(Law("weights")),
}

_NO_LAW: Mapping[str, str] = {
    "evonorm-b0": "EvoNorm's own activation is not a ReLU and depends on the scale of its input",
    "evonorm-s0": "EvoNorm's own activation is not a ReLU and depends on the scale of its input",
    "switchable": "a mixture of three kinds of statistics is not covered",
    "renorm": "its running statistics are not those of the batch at initialization",
    "mode": "statistics of a mixture's components are not covered",
    "mixture": "statistics of a mixture's components are not covered",
    "mean": "centring without rescaling is not covered",
    "proxy": "the proxy's re-centring of single channels is not covered",
    "dyt": "a squashing depends on the scale of its input",
    "derf": "a squashing depends on the scale of its input",
}
