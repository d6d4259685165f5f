"""How many channels share one statistic: the arithmetic of group sizes. Imports no torch.

"GroupNorm 32" means 32 groups to some and 32 channels a group to others, and at narrow widths the two are different
layers. Everything here therefore takes exactly one of ``size`` (channels a group) and ``groups`` (number of groups).
"""

from __future__ import annotations

from layerscope.errors import SpecError


def resolve_group_size(channels: int, *, size: int | None, groups: int | None, name: str = "group") -> int:
    """Channels a group, from exactly one of ``size`` and ``groups``.

    Args:
        channels: channels of the layer, at least 1.
        size: channels a group.
        groups: number of groups.
        name: the norm's name, for the message.

    Raises:
        SpecError: both or none given, or the channels do not divide; the message names the divisors near by.
    """
    if (size is None) == (groups is None):
        raise SpecError(
            f"{name} needs exactly one of size= (channels a group) and groups= (number of groups): "
            f"{name}:size=32 or {name}:groups=32"
        )
    wanted = size if size is not None else groups
    assert wanted is not None
    if wanted < 1 or channels % wanted:
        key = "size" if size is not None else "groups"
        near = " or ".join(f"{name}:{key}={d}" for d in neighbours(channels, wanted))
        raise SpecError(f"{name}:{key}={wanted} does not divide {channels} channels; near by: {near}")
    return wanted if size is not None else channels // wanted


def divisors(channels: int) -> tuple[int, ...]:
    """All divisors, ascending.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [d for d in range(1, int(channels**0.5) + 1) if channels % d == 0]
    return tuple(sorted({*small, *(channels // d for d in small)}))


def neighbours(channels: int, wanted: int) -> tuple[int, ...]:
    """The largest divisor below ``wanted`` and the smallest above it.

    >>> neighbours(64, 48)
    (32, 64)
    """
    below = [d for d in divisors(channels) if d <= wanted][-1:]
    above = [d for d in divisors(channels) if d > wanted][:1]
    return tuple(below + above)


def nearest_divisor(channels: int, wanted: int) -> int:
    """The divisor of ``channels`` nearest to ``wanted`` on a log scale; the smaller one on a tie.

    >>> nearest_divisor(24, 32), nearest_divisor(96, 32), nearest_divisor(40, 16)
    (24, 32, 20)
    """
    return min(divisors(channels), key=lambda d: (max(d / wanted, wanted / d), d))
