"""Gradient size per layer, raw and in the form that no rescaling of the network can change."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scaled_gradient(grad_norm: float, rms: float) -> float:
    """|dL/du| * rms(u): the scale-free gradient of one layer's output u.

    Multiplying a normalized network's input, or one layer's weights, by k leaves the function alone but divides the
    raw gradient |dL/du| by k; the product with rms(u) does not move.
    """
    return grad_norm * rms


def backward_rate(norms: Sequence[float]) -> float:
    """(g_1 / g_L)^(1/(L-1)): growth of the gradient per layer toward the input; above 1 it explodes.

    Args:
        norms: one gradient norm per layer, input side first.

    Returns:
        The rate; NaN with fewer than two layers or where an end is zero or not finite.
    """
    ratio = first_last_ratio(norms)
    return ratio ** (1 / (len(norms) - 1)) if len(norms) > 1 and ratio > 0 else math.nan


def first_last_ratio(norms: Sequence[float]) -> float:
    """g_1 / g_L; NaN with fewer than two layers, infinite where the last one is zero."""
    if len(norms) < 2 or not (math.isfinite(norms[0]) and math.isfinite(norms[-1])):
        return math.nan
    if norms[-1] == 0:
        return math.inf if norms[0] else math.nan
    return norms[0] / norms[-1]


def comparable_gradient(grad_norm: float, samples: int) -> float:
    """grad_norm * sqrt(N): the gradient of a mean loss shrinks as 1/sqrt(N); this takes the batch size out."""
    return grad_norm * math.sqrt(samples)
