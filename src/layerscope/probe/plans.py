"""Which reductions a call site gets, by level and role: the price list of the probe.

Prices in reads of the tensor: moments 2, cosine 1, gradient 1, Gram matrix of 32 samples 3, extremes 1.5. ``light`` and
``standard`` read the first 32 samples of a batch: the network still runs on all of it, so a batch norm normalizes the
training batch, but a larger batch costs no more to read. Gradients are of the whole batch at every level. The Gram
matrix and its eigenvalues cost the square and the cube of the samples, so ``deep`` takes the ranks of 32 too: they mean
the same at every level and batch size. The moments of a plain batch norm's output follow from its input's, so they cost
nothing where no more is asked; where a part of the batch was read, they are estimated as if that part were the batch.

Signals are read where a layer hands its result on (an *outlet*): activations and blocks. A network that shows neither,
because its activations are functions, is read at its weight and norm layers instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from layerscope.probe.records import Level, Role

#: Soft ranks, and whatever a level reads of only a part of a batch, are of its first samples, so many of them.
FIRST_SAMPLES = 32
GRAM_FEATURES = 16384
_ALL = 1 << 62
_WEIGHTED = ("conv", "linear", "attention", "block")
_OUTLETS = ("activation", "block")
_BEFORE_OUTLET = ("conv", "norm")


class Plan(NamedTuple):
    """The reductions of one call site, beside its moments."""

    samples: int = _ALL
    """At most this many samples are read."""
    cosine: bool = False
    gram_samples: int = 0
    """At most this many samples in the Gram matrix; 0: none."""
    gram_features: int = GRAM_FEATURES
    """At most this many features in it."""
    sketch: bool = False
    """Keep a few thousand values, for the share of zeros."""
    absmax: bool = False
    gradient: bool = False
    inner_gradient: bool = True
    """Also inside a block of a residual stream, whose own output's gradient could stand for it."""

    def covers(self, other: Plan) -> bool:
        """Whether everything ``other`` asks of the values is done here too."""
        return (
            self.samples >= other.samples
            and self.cosine >= other.cosine
            and self.gram_samples >= other.gram_samples
            and (not other.gram_samples or self.gram_features >= other.gram_features)
            and self.sketch >= other.sketch
            and self.absmax >= other.absmax
        )

    @property
    def moments_may_be_derived(self) -> bool:
        """Whether nothing else is asked that builds on the moments."""
        return not (self.cosine or self.sketch or self.absmax)


class Planner:
    """The plans of one level for one network."""

    def __init__(self, level: Level, roles: Iterable[Role]) -> None:
        self.level = level
        self.has_outlets = any(role in _OUTLETS for role in roles)
        self._plans: dict[tuple[Role, bool], Plan | None] = {}

    def __call__(self, role: Role, in_block: bool) -> Plan | None:
        """What is measured where ``role`` stands; None: nothing, the call site is left out.

        ``light`` leaves out what lies inside a block, except weights and norms: the block's own output stands for it.
        """
        key = role, in_block
        if key not in self._plans:
            self._plans[key] = self._plan(role, in_block)
        return self._plans[key]

    def _plan(self, role: Role, in_block: bool) -> Plan | None:
        if self.level == "light":
            if in_block and role not in (*_WEIGHTED, "norm"):
                return None
            return Plan(FIRST_SAMPLES, gradient=role in _WEIGHTED, inner_gradient=role == "block")
        outlet = role in (_OUTLETS if self.has_outlets else _BEFORE_OUTLET)
        between = role in _BEFORE_OUTLET and not outlet
        if self.level == "standard":
            return Plan(
                FIRST_SAMPLES,
                cosine=not between,
                gram_samples=FIRST_SAMPLES if outlet else 0,
                sketch=outlet,
                gradient=role not in ("norm", "activation"),
            )
        if outlet:
            return Plan(_ALL, True, FIRST_SAMPLES, _ALL, sketch=True, absmax=True, gradient=True)
        return Plan(_ALL, role != "norm", FIRST_SAMPLES if role == "norm" else 0, gradient=True)
