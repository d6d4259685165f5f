"""What a network is given: one tensor, or several as a tuple or a dict, with samples on the first axis of each.

The probe, surgery and the few real steps all hand samples to networks that nobody here wrote; this is the one place
that knows how. A dict is spread into keyword arguments where ``forward`` names its keys and handed over whole where it
does not; a tuple or list likewise into positional arguments.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def call(model: nn.Module, x: Any) -> Any:
    """``model`` on these samples: ``model(x)``, ``model(*x)`` or ``model(**x)``, as its ``forward`` takes them."""
    args, kwargs = arguments(model, x)
    return model(*args, **kwargs)


def arguments(model: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that hand ``x`` to ``model``.

    >>> class TwoInputs(nn.Module):
    ...     def forward(self, image, age=None): ...
    >>> arguments(TwoInputs(), {"image": 1, "age": 2}), arguments(TwoInputs(), {"photo": 1})
    (((), {'image': 1, 'age': 2}), (({'photo': 1},), {}))
    >>> arguments(TwoInputs(), (1, 2)), arguments(nn.Identity(), (1, 2))
    (((1, 2), {}), (((1, 2),), {}))
    """
    if isinstance(x, Mapping):
        by_name = all(isinstance(key, str) for key in x) and _fits(model, (), dict(x))
        return ((), dict(x)) if by_name else ((x,), {})
    if isinstance(x, tuple | list):
        return (tuple(x), {}) if _fits(model, tuple(x), {}) else ((x,), {})
    return (x,), {}


def _fits(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def named(x: Any, name: str = "x") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in ``x`` with a name for messages, such as ``x['image']``."""
    if isinstance(x, Tensor):
        yield name, x
    elif isinstance(x, Mapping):
        for key, value in x.items():
            yield from named(value, f"{name}[{key!r}]")
    elif isinstance(x, tuple | list):
        for i, value in enumerate(x):
            yield from named(value, f"{name}[{i}]")
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        for field in dataclasses.fields(x):
            yield from named(getattr(x, field.name), f"{name}.{field.name}")


def mapped(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``x`` with every tensor in it changed; what is no tensor stays as it is."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {key: mapped(value, change) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(mapped(value, change) for value in x))
    if isinstance(x, tuple | list):
        return type(x)(mapped(value, change) for value in x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(x, **{f.name: mapped(getattr(x, f.name), change) for f in dataclasses.fields(x)})
    return x


def main(x: Any) -> Tensor | None:
    """The tensor that stands for the samples: the first floating-point one with a sample axis, else the first one."""
    tensors = [t for _, t in named(x) if t.ndim]
    return next((t for t in tensors if t.is_floating_point()), tensors[0] if tensors else None)


def count(x: Any, y: Any = None) -> int:
    """How many samples ``x`` holds: rows of its main tensor, or of ``y`` where the tensors in ``x`` differ in length.

    A list of images, packed sequences, and a bag of ids with offsets have no axis of samples that all tensors share;
    their labels have one. Of a tuple that starts with a list of images, ``(images, boxes)``, the images count.

    >>> image = torch.zeros(3, 8, 8)
    >>> count(torch.zeros(5, 3)), count([image] * 5, torch.arange(5)), count((torch.zeros(9), torch.zeros(5)))
    (5, 5, 9)
    >>> count(([image] * 2, [{"boxes": torch.zeros(1, 4)}] * 2))
    2
    """
    first, labels = main(x), main(y)
    rows = 0 if first is None else len(first)
    if isinstance(x, tuple) and x and isinstance(x[0], list) and _is_one_each(x[0], len(x[0])):
        return len(x[0])
    if labels is None or len(labels) == rows or isinstance(x, Tensor):
        return rows
    return len(labels) if _is_one_each(x, len(labels)) or not is_even(x, rows) else rows


def shape_of_one(x: Any, samples: int) -> tuple[int, ...]:
    """The shape of one sample, by the main tensor; empty where there is none.

    >>> shape_of_one(torch.zeros(5, 3), 5), shape_of_one([torch.zeros(3, 8, 8)] * 5, 5)
    ((3,), (3, 8, 8))
    """
    first = main(x)
    if first is None or first.is_nested:
        return ()
    part = x[0] if isinstance(x, tuple) and x else x
    return tuple(first.shape if _is_one_each(part, samples) else first.shape[1:])


def _is_one_each(x: Any, samples: int) -> bool:
    """Whether ``x`` is a list of samples, as detection networks take images, and no list of several inputs."""
    if not isinstance(x, list) or len(x) != samples or not all(isinstance(part, Tensor) for part in x):
        return False
    return any(len(part) != samples for part in x if part.ndim) or all(part.ndim == 3 for part in x)


def is_dense(tensor: Tensor) -> bool:
    """Neither sparse nor nested: it can be indexed and compared."""
    return tensor.layout is torch.strided and not tensor.is_nested


def is_even(x: Any, samples: int) -> bool:
    """Whether every tensor in ``x`` (but single numbers) has one row per sample, so that samples can be picked."""
    return not _is_one_each(x, samples) and all(is_dense(t) and len(t) == samples for _, t in named(x) if t.ndim)


def pick(x: Any, index: Tensor | slice) -> Any:
    """The samples at ``index``."""
    return mapped(x, lambda t: t[index.to(t.device) if isinstance(index, Tensor) else index] if t.ndim else t)


def placed(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """``x`` on a device, floats in the network's dtype."""
    return mapped(x, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))


def shapes(x: Any) -> str:
    """The shape of what is given, for messages."""
    found = list(named(x, ""))
    if len(found) == 1 and not found[0][0]:
        return str(list(found[0][1].shape))
    return ", ".join(f"{name} {list(t.shape)}" for name, t in found) or type(x).__name__
