"""What modules hold by name, put back after a forward pass that may have changed it: counters, caches, histories.

Parameters and buffers keep their place here, not their values; every other tensor keeps both.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerscope import inputs

#: What is put back of torch's own modules, whose forward sets no attributes.
_TORCH = {"training", "_parameters", "_buffers", "_modules"}
#: What every module has beside them: hooks and their flags, which a forward pass does not change.
_INTERNAL = frozenset(vars(nn.Module())) - _TORCH
_CONTAINERS = (list, dict, set, deque)
#: Longer containers are put back themselves, but not looked into.
_LONG = 1000


class Attributes:
    """The attributes of some modules, as they stand now."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Read and written through __dict__: an attribute may have a setter, and a module may override __setattr__.
        self._modules = [(vars(m), _own(m)) for m in modules]
        found: dict[int, tuple[Any, Any]] = {}
        for _, own in self._modules:
            for value in own.values():
                _copy(value, found)
        self._containers = list(found.values())
        tables = {id(own[name]) for _, own in self._modules for name in ("_parameters", "_buffers")}
        holders = [own for _, own in self._modules] + [kept for c, kept in self._containers if id(c) not in tables]
        tensors = {id(t): t for held in holders for t in _values(held) if isinstance(t, Tensor)}
        self._tensors = [(t, t.detach().clone()) for t in tensors.values()]
        self._generators = [kept for held in holders for value in _values(held) if (kept := _generator(value))]

    def restore(self) -> None:
        """Put back what stood where."""
        for now, before in self._modules:
            if before.keys() != _TORCH:
                for name in now.keys() - before.keys() - _INTERNAL:
                    del now[name]
            now.update(before)
        for container, kept in self._containers:
            if isinstance(container, list):
                container[:] = kept
            else:
                container.clear()
                container.extend(kept) if isinstance(container, deque) else container.update(kept)
        for tensor, copy in self._tensors:
            put_back(tensor, copy)
        for set_state, state in self._generators:
            set_state(state)


def put_back(tensor: Tensor, copy: Tensor) -> None:
    """Give ``tensor`` the values (and the shape) of ``copy``; one that has them already is not written to.

    An autograd graph that the caller still holds stays valid that way.
    """
    if tensor.is_meta:
        return
    if tensor.shape != copy.shape or tensor.dtype != copy.dtype or tensor.device != copy.device:
        tensor.data = copy.clone()
    elif not inputs.is_dense(tensor):
        tensor.data.copy_(copy)  # torch compares neither sparse nor nested tensors
    elif not torch.equal(tensor, copy):
        tensor.data.copy_(copy)


def _own(module: nn.Module) -> dict[str, Any]:
    # hooks before a forward may set attributes: the older weight and spectral norms, pruning
    if type(module).__module__.startswith("torch.nn.modules") and not module._forward_pre_hooks:
        return {name: vars(module)[name] for name in _TORCH}
    return {name: value for name, value in vars(module).items() if name not in _INTERNAL}


def _generator(value: Any) -> tuple[Callable[[Any], Any], Any] | None:
    """How to put back a random generator of torch, Python or NumPy, and its state; None for anything else."""
    if isinstance(value, torch.Generator):
        return value.set_state, value.get_state()
    if isinstance(value, random.Random):
        return value.setstate, value.getstate()
    bits = getattr(value, "bit_generator", None) if type(value).__module__.startswith("numpy.") else None
    return None if bits is None else (partial(setattr, bits, "state"), bits.state)


def _values(held: Any) -> Iterable[Any]:
    return held.values() if isinstance(held, dict) else held


def _copy(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    if type(value) not in _CONTAINERS or id(value) in found:
        return
    found[id(value)] = value, value.copy()
    if len(value) <= _LONG and not isinstance(value, set):
        for inner in _values(value):
            _copy(inner, found)
