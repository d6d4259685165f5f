"""Point an optimiser at the parameters that are in the network now, with the state they had."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerscope.errors import SwapError


@dataclass(frozen=True)
class Succession:
    """The parameters of one site, its norm and what was exchanged around it: what left the network and what came."""

    left: tuple[nn.Parameter, ...]
    came: tuple[nn.Parameter, ...]
    heirs: tuple[tuple[nn.Parameter, nn.Parameter], ...]
    """(old, new) pairs that play the same role and hold the same values."""


def repoint(optimizer: torch.optim.Optimizer, successions: Iterable[Succession]) -> Callable[[], None]:
    """Make ``optimizer`` train the parameters that came instead of those that left.

    An heir takes the place of the old parameter: same group, same position, a copy of its state (momentum, second
    moment), and stays out where the old one was not held. Parameters that came without a predecessor join the group
    that held one of their site's old ones; a site of which the optimiser held nothing (a frozen part) stays out of it,
    and one that had no parameters joins the first group.

    Returns:
        A function that puts the optimiser back as it was: groups, order and state.

    Raises:
        SwapError: the optimiser holds none of the parameters that left.
    """
    successions = tuple(successions)
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    left = [p for succession in successions for p in succession.left]
    if left and not any(id(p) in group_of for p in left):
        raise SwapError(
            f"this {type(optimizer).__name__} holds none of the exchanged parameters: was it made for another network?"
        )
    before_groups = [list(group["params"]) for group in optimizer.param_groups]
    before_state = dict(optimizer.state)

    for succession in successions:
        heir_of = {id(old): new for old, new in succession.heirs}
        home = next((group_of[id(p)] for p in succession.left if id(p) in group_of), None)
        if not succession.left and succession.came:
            home = 0
        if home is None:
            continue
        for old in succession.left:
            if id(old) in group_of:
                _replace(optimizer, group_of[id(old)], old, heir_of.get(id(old)))
        placed = {id(p) for group in optimizer.param_groups for p in group["params"]}
        left_out = {id(new) for old, new in succession.heirs if id(old) not in group_of}
        optimizer.param_groups[home]["params"] += [p for p in succession.came if id(p) not in placed | left_out]

    def back() -> None:
        for group, params in zip(optimizer.param_groups, before_groups, strict=True):
            group["params"] = params
        optimizer.state.clear()
        optimizer.state.update(before_state)

    return back


def _replace(optimizer: torch.optim.Optimizer, group: int, old: nn.Parameter, new: nn.Parameter | None) -> None:
    params = optimizer.param_groups[group]["params"]
    at = next(i for i, p in enumerate(params) if p is old)
    params[at : at + 1] = [] if new is None else [new]
    state = optimizer.state.pop(old, None)
    if state is not None and new is not None:
        optimizer.state[new] = _carried(state, old, new)


def _carried(state: dict[str, Any], old: torch.Tensor, new: torch.Tensor) -> dict[str, Any]:
    """A copy of one parameter's state, tensors in the new parameter's shape; the old state stays untouched."""
    return {
        key: value.clone().reshape(new.shape)
        if isinstance(value, torch.Tensor) and value.shape == old.shape
        else copy.deepcopy(value)
        for key, value in state.items()
    }
