"""Triggers work on images in [0, 1]; data sets lie in other ranges. This is the passage between them."""

from __future__ import annotations

from torch import Tensor

from layerscope.methods.medic.attacks.triggers import Trigger
from layerscope.methods.medic.errors import MedicError

Range = tuple[float, float]

#: Rounding of a scaled byte.
_SLACK = 1e-3


def range_of(x: Tensor, value_range: Range | None = None) -> Range:
    """The range that black and white stand for: [0, 1] if the images lie in it, otherwise [-1, 1], or as given.

    Raises:
        MedicError: images outside the range; standardized ones need ``value_range=`` and one range for all channels.
    """
    low, high = float(x.min()), float(x.max())
    for found in [value_range] if value_range is not None else [(0.0, 1.0), (-1.0, 1.0)]:
        slack = _SLACK * (found[1] - found[0])
        if found[0] - slack <= low and high <= found[1] + slack and found[0] < found[1]:
            return found
    told = "" if value_range is None else f", not within value_range={value_range}"
    raise MedicError(
        f"the images lie in [{low:.3g}, {high:.3g}]{told}: triggers must know what black and white are; "
        "pass value_range=(black, white), and normalize inside the network if channels differ"
    )


def put(trigger: Trigger, x: Tensor, index: Tensor, value_range: Range) -> Tensor:
    """The images, which lie in ``value_range``, with the trigger on them."""
    low, high = value_range
    if len(x) == 0:
        return x.clone()
    return trigger(((x - low) / (high - low)).clamp(0, 1), index) * (high - low) + low
