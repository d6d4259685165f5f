"""How many numbers does one normalization statistic see? Sets of two or three have no useful gradient."""

from __future__ import annotations

import math

from layerscope.errors import SpecError
from layerscope.probe.records import LayerRecord, Profile
from layerscope.spec import Spec, parse_spec

#: class name of a norm layer -> the family whose statistic set it uses (for networks that are judged as they are)
_FAMILY_OF_CLASS = {
    "BatchNorm1d": "batch",
    "BatchNorm2d": "batch",
    "BatchNorm3d": "batch",
    "SyncBatchNorm": "batch",
    "BatchNormAct2d": "batch",
    "InstanceNorm1d": "instance",
    "InstanceNorm2d": "instance",
    "InstanceNorm3d": "instance",
}


def smallest_set(profile: Profile) -> tuple[int, LayerRecord] | None:
    """Fewest elements that share one statistic in this network, and where; None where no family is known.

    A BatchNorm set has N*S elements (batch size times positions), InstanceNorm S, GroupNorm g*S with g channels a
    group, GhostBN size*S. Sets of three or fewer make the expected gradient diverge: the squared rate of a normalized
    ReLU layer is (pi/(pi-1)) (m-2)/(m-3) for sets of m exchangeable elements.
    """
    try:
        spec = parse_spec(profile.norm)
    except SpecError:
        spec = Spec("as-is")
    found: list[tuple[int, LayerRecord]] = []
    for record in profile.of("norm"):
        family = _FAMILY_OF_CLASS.get(record.kind)
        if family is None and spec.name in ("batch", "instance", "group", "ghost", "variance", "mixture"):
            family = spec.name
        size = _set_size(family, spec, record, profile.batch_size) if family else None
        if size is not None:
            found.append((size, record))
    return min(found, key=lambda pair: pair[0], default=None)


def _set_size(family: str, spec: Spec, record: LayerRecord, batch: int) -> int | None:
    channels, positions = channels_positions(record)
    if family in ("batch", "variance", "mixture"):
        return batch * positions
    if family == "ghost":
        size = spec.kwargs.get("size")
        return int(size) * positions if isinstance(size, int | float) else None
    if family == "instance":
        return positions
    per_group = spec.kwargs.get("size")
    groups = spec.kwargs.get("groups")
    if isinstance(per_group, int):
        return per_group * positions
    if isinstance(groups, int) and groups > 0:
        return max(1, channels // groups) * positions
    return None


def channels_positions(record: LayerRecord) -> tuple[int, int]:
    """C and S of a record's output."""
    if record.layout == "token":
        return record.shape[-1], math.prod(record.shape[1:-1])
    return record.shape[1] if len(record.shape) > 1 else 1, math.prod(record.shape[2:])
