"""Learning-rate schedules as pure functions of the step: no state, so nothing to save and nothing to get out of step.

A schedule gives the factor on the base learning rate. In specs: ``constant``, ``step:at=0.5,gamma=0.1``,
``cosine:final=0.01``, ``onecycle:peak=0.3,div=25``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from layerscope.errors import SpecError, did_you_mean
from layerscope.spec import Spec, parse_spec

#: (step, steps in all) -> factor on the learning rate
Schedule = Callable[[int, int], float]


def constant(step: int, total: int) -> float:
    """Always 1."""
    return 1.0


def step_decay(step: int, total: int, *, at: float = 0.5, then: float = 0.75, gamma: float = 0.1) -> float:
    """1, from the share ``at`` of the run ``gamma``, from ``then`` ``gamma``^2."""
    return gamma ** ((step >= at * total) + (step >= then * total))


def cosine(step: int, total: int, *, final: float = 0.0) -> float:
    """Half a cosine from 1 to ``final``; Loshchilov and Hutter 2017, arXiv 1608.03983."""
    return final + (1 - final) * (1 + math.cos(math.pi * step / total)) / 2


def onecycle(step: int, total: int, *, peak: float = 0.3, div: float = 25.0, end: float = 1e4) -> float:
    """From ``1/div`` up to 1 at the share ``peak`` of the run, then down to ``1/(div end)``, both as half a cosine.

    Source: Smith and Topin 2017, arXiv 1708.07120; the shape is that of torch's ``OneCycleLR``.
    """
    top, last = peak * total - 1, total - 1
    if step <= top or last <= top:
        start, stop, share = 1 / div, 1.0, step / top if top > 0 else 1.0
    else:
        start, stop, share = 1.0, 1 / (div * end), (step - top) / (last - top)
    return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2


_NAMED: dict[str, tuple[Callable[..., float], dict[str, float]]] = {
    "constant": (constant, {}),
    "step": (step_decay, {"at": 0.5, "then": 0.75, "gamma": 0.1}),
    "cosine": (cosine, {"final": 0.0}),
    "onecycle": (onecycle, {"peak": 0.3, "div": 25.0, "end": 1e4}),
}


def schedule(spec: str | Spec | Schedule, *, warmup: int = 0) -> Schedule:
    """A schedule by name, after ``warmup`` steps of linear increase; it then runs over the steps that are left.

    Raises:
        SpecError: unknown name or parameter, or a value that is not a number.
    """
    after = _named(spec) if isinstance(spec, str | Spec) else spec
    if not warmup:
        return after

    def warmed(step: int, total: int) -> float:
        return (step + 1) / warmup * after(0, total - warmup) if step < warmup else after(step - warmup, total - warmup)

    return warmed


def _named(spec: str | Spec) -> Schedule:
    read = parse_spec(spec) if isinstance(spec, str) else spec
    if read.name not in _NAMED:
        raise SpecError(f"no schedule {read.name!r}: {did_you_mean(read.name, _NAMED)}")
    function, defaults = _NAMED[read.name]
    for key, value in read.params:
        if key not in defaults:
            hint = did_you_mean(key, defaults) if defaults else f"{read.name} takes none"
            raise SpecError(f"schedule {read.name} has no parameter {key!r}: {hint}")
        if isinstance(value, bool | str) or not value >= 0:
            raise SpecError(f"schedule {read}: {key}={value} is not a number of at least 0")
    values = defaults | {k: float(v) for k, v in read.params}
    return lambda step, total: function(step, total, **values)
