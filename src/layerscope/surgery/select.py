"""Which sites: by path pattern, by index, by stage, or by any rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from layerscope.errors import SwapError, did_you_mean
from layerscope.surgery.sites import Site

Only = str | int | Iterable[str | int] | Callable[[Site], bool] | None


def places(where: str) -> list[str | int]:
    """What ``where=`` of a norm spec says, as an ``only=``: parts joined by ``+``.

    A part is an ordinal (``1st``, ``2nd``, ``last``), a number counted from 0, ``stage:2``, or a path pattern.

    >>> places("2nd+last+layer1.*")
    [1, -1, 'layer1.*']
    """
    return [_place(part.strip()) for part in where.split("+")]


def _place(part: str) -> str | int:
    if part in ("first", "last"):
        return 0 if part == "first" else -1
    ordinal = re.fullmatch(r"([1-9]\d*)(st|nd|rd|th)", part)
    if ordinal:
        return int(ordinal.group(1)) - 1
    return int(part) if re.fullmatch(r"-?\d+", part) else part


def select(sites: Sequence[Site], only: Only) -> set[int]:
    """Indices of the sites that ``only`` names; all of them for None.

    Raises:
        SwapError: a pattern, stage or index that fits no site, or a stage without an example.
    """
    if only is None:
        return {s.index for s in sites}
    if callable(only):
        return {s.index for s in sites if only(s)}
    parts = [only] if isinstance(only, str | int) else list(only)
    return set().union(*(_one(sites, part) for part in parts)) if parts else set()


def _one(sites: Sequence[Site], part: str | int) -> set[int]:
    if isinstance(part, int):
        if not -len(sites) <= part < len(sites):
            raise SwapError(f"only={part}: there are {len(sites)} norms, numbered from 0 to {len(sites) - 1}")
        return {sites[part].index}
    head, _, number = part.partition(":")
    if head == "stage" and number.isdigit():
        return _stage(sites, int(number))
    chosen = {s.index for s in sites if any(fnmatchcase(path, part) for path in s.paths)}
    if not chosen:
        raise SwapError(f"only={part!r} fits no norm; {did_you_mean(part, [p for s in sites for p in s.paths])}")
    return chosen


def _stage(sites: Sequence[Site], stage: int) -> set[int]:
    known = sorted({s.stage for s in sites if s.stage is not None})
    if not known:
        raise SwapError("stages are told apart by the size of the maps: pass example=, a batch to run through once")
    if stage not in known:
        raise SwapError(f"only='stage:{stage}': this network has stages {known[0]} to {known[-1]}")
    return {s.index for s in sites if s.stage == stage}
