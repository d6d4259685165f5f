"""Samples of the caller's own, for any network: several inputs, tokens, maps of labels, targets, no labels at all.

``as_dataset`` makes classification sets and checks them; here nothing is said about what the numbers mean, because only
the network and the loss know. Both read tuples as ``(x, y)`` and everything that can be iterated as batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from layerscope import inputs
from layerscope.errors import DataError


def gather(source: Any, size: int, *, at_least: int, seed: int = 0) -> tuple[Any, Any]:
    """``size`` samples ``(x, y)``, or as many as there are.

    Args:
        source: ``(x, y)``; ``x`` alone (an array or a dict); a torch ``Dataset``; or an iterable of such batches. ``x``
            and ``y`` may be arrays, tensors, or tuples and dicts of them; ``y`` may be None.
        size: samples wanted. From ``(x, y)`` they are drawn without replacement, from an iterable come its first ones.
        at_least: fewer than this are an error.
        seed: of the draw, and of a loader's own shuffling.

    Raises:
        DataError: no data, too few samples, or batches that do not fit together.
    """
    batches = _batches(source, at_least)
    if batches is None:
        x, y = _pair(source)
        count = inputs.count(x, y)
        if not (inputs.is_even(x, count) and inputs.is_even(y, count)):
            return x, y  # a graph, or lengths that do not fit, which the probe will say
        _enough(count, at_least)
        index = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size]
        return inputs.pick(x, index), inputs.pick(y, index)
    parts, have = [], 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for item in batches:
            part = _pair(item)
            parts.append(part)
            rows = inputs.count(*part)
            have += rows
            if have >= size or not inputs.is_even(part, rows):
                break  # enough, or one whole to which no other can be joined
    _enough(have, at_least)
    if len(parts) == 1:
        x, y = parts[0]
    else:
        x, y = _joined([x for x, _ in parts], "x"), _joined([y for _, y in parts], "y")
    stop = slice(size)
    even = have > size and inputs.is_even(x, have) and inputs.is_even(y, have)
    return (inputs.pick(x, stop), inputs.pick(y, stop)) if even else (x, y)


def repeated(source: Any, batch_size: int) -> Iterable[tuple[Any, Any]]:
    """Training batches ``(x, y)`` of the same samples; what was given as an iterable keeps its own batches."""
    batches = _batches(source, batch_size)
    if batches is not None:
        return _Pairs(batches)
    x, y = _pair(source)
    count = inputs.count(x, y)
    if count <= batch_size or not (inputs.is_even(x, count) and inputs.is_even(y, count)):
        return [(x, y)]
    order = torch.split(torch.randperm(count, generator=torch.Generator().manual_seed(0)), batch_size)
    return [(inputs.pick(x, i), inputs.pick(y, i)) for i in order if len(i) == batch_size]


class _Pairs:
    """The batches of an iterable as pairs."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(_pair, self._batches)


def _batches(source: Any, batch_size: int) -> Iterable[Any] | None:
    """What to iterate over; None where ``source`` is one batch itself."""
    if isinstance(source, TorchDataset) and not isinstance(source, IterableDataset):
        return DataLoader(source, batch_size=batch_size, shuffle=True)
    if isinstance(source, Mapping | tuple) or hasattr(source, "__array__"):
        return None
    if isinstance(source, list) and len(source) == 2 and all(hasattr(part, "__array__") for part in source):
        return None
    if not isinstance(source, Iterable):
        raise DataError(
            f"{type(source).__name__} is no data: expected a name, a Dataset, tensors (x, y) or batches of (x, y)"
        )
    return source


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise DataError(
                f"got {describe(item)}; expected batches (x, y): several inputs are a tuple or dict x, "
                "as in ((a, b), y)"
            )
        x, y = _tensors(item[0]), _tensors(item[1])
    else:
        x, y = _tensors(item), None
    if inputs.main(x) is None:
        raise DataError(f"got {describe(item)}; expected batches (x, y) of tensors")
    return x, y


def _tensors(value: Any) -> Any:
    """Arrays inside as tensors; lists of numbers too."""
    if isinstance(value, Mapping):
        return {key: _tensors(part) for key, part in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_tensors, value))
    if hasattr(value, "__array__") or isinstance(value, list):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return [_tensors(part) for part in value] if isinstance(value, list) else value
    return value


def _enough(have: int, at_least: int) -> None:
    if have < at_least:
        raise DataError(
            f"the data gave {have} sample(s), fewer than the {at_least} asked for: lower batch_size (or chunks)"
        )


def _joined(parts: list[Any], name: str) -> Any:
    """Batches of one structure, one after the other."""
    first = parts[0]
    try:
        if isinstance(first, Tensor):
            return torch.cat(parts) if first.ndim else first
        if isinstance(first, Mapping):
            return {key: _joined([part[key] for part in parts], f"{name}[{key!r}]") for key in first}
        if isinstance(first, tuple | list):
            return type(first)(
                _joined(list(values), f"{name}[{i}]") for i, values in enumerate(zip(*parts, strict=True))
            )
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"the batches do not fit together at {name} ({inputs.shapes(parts[0])} and {inputs.shapes(parts[-1])}): "
            "give batches of one shape, or take one batch only with chunks=1"
        ) from error
    return first


def describe(item: Any) -> str:
    """What came, for messages: ``a tuple of Tensor, str``."""
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {', '.join(type(part).__name__ for part in item) or 'nothing'}"
    return f"a {type(item).__name__}"
