"""The second route to a verdict: what mean-field theory says of the same norm, depth, map sizes and batch."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.probe.records import Profile
from layerscope.verdict.trunk import Trunk
from layerscope.verdict.types import Analytic


def analytic_route(profiles: Sequence[Profile], path: Trunk) -> Analytic | None:
    """Prediction and whether it agrees; None where the theory does not cover the configuration."""
    return None
