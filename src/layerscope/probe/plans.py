"""Which reductions a call site gets, by level and role: the price list of the probe.

Prices in reads of the tensor: moments 2, cosine 1, gradient 1, Gram matrix of 32 samples about 2, extremes 1.5. What
follows a batch norm's output is known from its input, so ``light`` and ``standard`` do not read that output again.
"""

from __future__ import annotations

from typing import NamedTuple

from layerscope.probe.records import Level, Role

GRAM_SAMPLES = 32
GRAM_FEATURES = 16384
_ALL = 1 << 62


class Plan(NamedTuple):
    """The reductions of one call site."""

    cosine: bool
    gram_samples: int
    """At most this many samples in the Gram matrix; 0: none."""
    gram_features: int
    """At most this many features in it."""
    sketch: bool
    """Keep a few thousand values, for the share of zeros."""
    absmax: bool
    gradient: bool


def plan(level: Level, role: Role) -> Plan:
    """What ``level`` measures where ``role`` stands."""
    outlet = role in ("activation", "block")
    weighted = role in ("conv", "linear", "attention", "block")
    if level == "light":
        return Plan(False, 0, 0, False, False, weighted)
    if level == "standard":
        everywhere = role != "norm"
        return Plan(everywhere, GRAM_SAMPLES if outlet else 0, GRAM_FEATURES, outlet, False, everywhere)
    return Plan(True, _ALL if outlet or role == "norm" else 0, _ALL, True, True, True)
