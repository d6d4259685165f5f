"""One layer axis for all choices: which sites are shown, how they are called, and each choice's numbers on them.

The sites are the verdict's own main path (:mod:`layerscope.verdict.trunk`), so that the pictures show what was judged:
block outputs where there is a residual stream, every layer otherwise. A site that one choice lacks is a gap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from layerscope.probe.records import LayerRecord, Profile
from layerscope.report.numbers import shape
from layerscope.verdict.trunk import trunk

Path = Literal["forward", "backward"]

_MOST_STAGES = 6
"""So many stages are always drawn; more of them only if they are four sites long on average."""


@dataclass(frozen=True)
class Site:
    """One place on the layer axis."""

    name: str
    shape: tuple[int, ...] = ()
    """Shape of one sample's output there; empty where it is not known."""
    kind: str = ""


@dataclass(frozen=True)
class LayerAxis:
    """The sites in execution order, and for each choice the records that stand there, one row for each seed."""

    sites: tuple[Site, ...]
    records: tuple[tuple[tuple[LayerRecord | None, ...], ...], ...]
    """[choice][seed][site]"""
    unit: str
    """What one step is called: ``block`` or ``layer``."""

    def stages(self) -> tuple[tuple[int, str], ...]:
        """First index and label of every stretch of sites whose outputs have the same shape.

        Where the shape changes at almost every site, as the channels of a DenseNet do, the resolution alone counts;
        where that changes too often as well there are no stages.
        """
        for part in (slice(None), slice(1, None)):
            starts: list[tuple[int, tuple[int, ...]]] = []
            for i, site in enumerate(self.sites):
                dims = site.shape[part]
                if dims and (not starts or dims != starts[-1][1]):
                    starts.append((i, dims))
            if len(starts) <= max(_MOST_STAGES, len(self.sites) // 4):
                return tuple((i, shape(dims)) for i, dims in starts)
        return ()

    def index(self, name: str | None) -> int | None:
        """The site called ``name``, or the first one inside it, or the one that holds it."""
        if not name:
            return None
        names = [s.name for s in self.sites]
        if name in names:
            return names.index(name)
        inside = (i for i, n in enumerate(names) if n.startswith(name + ".") or name.startswith(n + "."))
        return next(inside, None)


def layer_axis(groups: Sequence[Sequence[Profile]], path: Path) -> LayerAxis:
    """The common axis of several choices, each given by its profiles over seeds (possibly none)."""
    rows = [[_along(profile, path) for profile in group] for group in groups]
    orders = Counter(tuple(r.name for r in group[0]) for group in rows if group and group[0])
    if not orders:
        return LayerAxis((), tuple(tuple(() for _ in group) for group in rows), "layer")
    # The order that most choices have is the base; the first of equals, so that the result does not depend on chance.
    base = orders.most_common(1)[0][0]
    names = list(base)
    for order in orders:
        # As many layers as the base: the same layers, some under another name (a norm that holds the activation).
        if len(order) != len(base) and len(set(order) & set(base)) * 2 >= len(base):
            names = merge(names, order)
    known = {r.name: r for group in rows for row in group for r in reversed(row)}
    sites = tuple(Site(n, tuple(known[n].shape[1:]), known[n].kind) for n in names)
    placed = tuple(
        tuple(_place(profile, row, base, names) for profile, row in zip(group, seeds, strict=True))
        for group, seeds in zip(groups, rows, strict=True)
    )
    units = [trunk(group[0]).unit for group in groups if group]
    return LayerAxis(sites, placed, Counter(units).most_common(1)[0][0])


def _along(profile: Profile, path: Path) -> tuple[LayerRecord, ...]:
    found = trunk(profile)
    return found.forward if path == "forward" else found.backward


def _place(
    profile: Profile, row: Sequence[LayerRecord], base: Sequence[str], names: Sequence[str]
) -> tuple[LayerRecord | None, ...]:
    """The profile's records on the common sites: one to one where it has as many as the base, else by name."""
    by_name = {r.name: r for r in reversed(profile.records)}
    if len(row) == len(base):
        by_name.update(zip(base, row, strict=True))
    return tuple(by_name.get(n) for n in names)


def merge(names: Sequence[str], other: Sequence[str]) -> list[str]:
    """``names`` with the missing ones of ``other`` put in behind their predecessors.

    >>> merge(["a", "b", "d"], ["a", "c", "d"])
    ['a', 'c', 'b', 'd']
    """
    merged, place = list(names), 0
    for name in other:
        if name in merged:
            place = merged.index(name) + 1
        else:
            merged.insert(place, name)
            place += 1
    return merged


@dataclass(frozen=True)
class Series:
    """One quantity of one choice along the axis: median over seeds and its range."""

    middle: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None


def series(rows: Sequence[Sequence[float | None]], relative_to_last: bool = False) -> Series:
    """Median and range over the rows (one for each seed) of one choice; NaN at a site if any seed has NaN there.

    With ``relative_to_last`` every seed's values are divided by its own last positive value.
    """
    values = [_by_last(row) if relative_to_last else row for row in rows]
    columns = [[v for v in column if v is not None] for column in zip(*values, strict=True)]
    middle = tuple(_over(column, median) for column in columns)
    if len(values) < 2:
        return Series(middle)
    return Series(middle, tuple(_over(c, min) for c in columns), tuple(_over(c, max) for c in columns))


def _by_last(row: Sequence[float | None]) -> list[float | None]:
    last = next((v for v in reversed(row) if v is not None and v > 0 and math.isfinite(v)), None)
    return [None if v is None or last is None else v / last for v in row]


def _over(column: Sequence[float], reduce: Callable[[Sequence[float]], float]) -> float | None:
    if not column:
        return None
    return math.nan if any(math.isnan(v) for v in column) else reduce(column)
