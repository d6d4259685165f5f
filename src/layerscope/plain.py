"""Frozen dataclasses to plain JSON values and back, without loss; NaN and infinities become strings.

JSON has no non-finite numbers, and a probe that met one must say so: they travel as the strings
``"nan"``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples, mappings and scalars as what ``json.dumps`` takes, NaN as ``"nan"``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not a plain value")


def from_plain(cls: type[T], data: Any) -> T:
    """Rebuild the frozen dataclass ``cls`` from :func:`to_plain`'s output; unknown keys are ignored."""
    return typing.cast(T, _build(cls, data))


def _build(hint: Any, data: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _build_union(typing.get_args(hint), data)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{f.name: _build(hints[f.name], data[f.name]) for f in dataclasses.fields(hint) if f.name in data})
    if origin is tuple:
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], item) for item in data)
        return tuple(_build(a, item) for a, item in zip(args, data, strict=True))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {k: _build(typing.get_args(hint)[1], v) for k, v in data.items()}
    if hint is float and data is not None:
        return float(data)
    return data


def _build_union(options: tuple[Any, ...], data: Any) -> Any:
    if data is None:
        return None
    for option in options:
        if option is type(None):
            continue
        if option is float and data in ("nan", "inf", "-inf"):
            return float(data)
        if dataclasses.is_dataclass(option) or typing.get_origin(option) is not None:
            return _build(option, data)
    return float(data) if set(options) == {float, type(None)} else data
