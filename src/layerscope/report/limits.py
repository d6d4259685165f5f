"""The verdict's own limits as lines in the pictures, as far as they hold for most of the networks shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from layerscope.probe.records import Profile
from layerscope.report.charts.frame import Guide
from layerscope.verdict.thresholds import DEFAULT
from layerscope.verdict.trunk import trunk


def informative_guides(profiles: Sequence[Profile], at_end: bool = False) -> tuple[Guide, ...]:
    """Cosines above which samples look too much alike; they depend on whether there is a non-negative stream."""
    limits = Counter(DEFAULT.informative(trunk(p).stream_blocks) for p in profiles).most_common(1)
    if not limits:
        return ()
    caution, bad = limits[0][0]
    return Guide(1 - caution, "slow above", at_end), Guide(1 - bad, "very slow above", at_end)


def gradient_guides(profiles: Sequence[Profile]) -> tuple[Guide, ...]:
    """Gradients, as multiples of the last layer's, that raise an alarm; a residual stream bears more."""
    kinds = Counter((trunk(p).kind, len(trunk(p).backward)) for p in profiles).most_common(1)
    if not kinds:
        return ()
    kind, layers = kinds[0][0]
    caution, bad = DEFAULT.gradient(layers, residual=kind == "residual")
    return (
        Guide(bad, "unstable above", at_end=True),
        Guide(caution, "caution above", at_end=True),
        Guide(DEFAULT.gradient_vanish_caution, "shrinking below", at_end=True),
    )
