"""Copies of a network that keep working, also where torch's own deep copy gives up or shares what it should not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

M = TypeVar("M", bound=nn.Module)


def is_unfinished(module: nn.Module) -> bool:
    """Whether it has lazy layers that do not know their shapes yet."""
    return any(is_lazy(t) for t in (*module.parameters(), *module.buffers()))


def duplicate(module: M, error: Callable[[str], Exception]) -> M:
    """A deep copy that shares nothing with the original.

    Tensors that hooks compute before every forward (pruning, the older weight norm) are no leaves, and torch copies
    none of those; here they are copied as values, for the hooks to compute anew.

    Args:
        module: any network.
        error: makes the exception from what is wrong.

    Raises:
        Exception: what ``error`` makes, for lazy layers without shapes, a ``forward`` that was replaced on the object,
            or anything that Python cannot copy.
    """
    label = type(module).__name__
    if is_unfinished(module):
        raise error(f"{label} has lazy layers that do not know their shapes yet: run one batch through it first")
    if any("forward" in vars(m) for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)):
        raise error(f"{label} has a forward that was replaced on the object, so that a copy would run the original's")
    own = (value for m in module.modules() for value in vars(m).values())
    values = {id(t): t.detach().clone() for t in own if isinstance(t, torch.Tensor) and not t.is_leaf}
    try:
        return copy.deepcopy(module, values)
    except Exception as trouble:
        raise error(f"{label} cannot be copied ({type(trouble).__name__}: {trouble})") from trouble
