"""Is this output the sum of two paths? Read off the autograd graph, so that no class name has to be known."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from torch import Tensor

_SUM = re.compile(r"(Add|Sub)Backward")
_WEIGHTS = re.compile(r"Convolution|Addmm|^Mm|Bmm|^Mv|Matmul|Linear|Embedding|Attention", re.IGNORECASE)
#: Nodes looked at before giving up; what may follow an addition (a norm written out by hand, a gate) is shorter.
_BUDGET = 64
#: Sums inside sums that are looked through; one further back is taken for a sum of paths.
_DEPTH = 12


def is_sum_of_paths(out: Tensor, walk: Walk | None = None) -> bool:
    """Whether ``out`` is ``a + b`` where ``a`` and ``b`` come from different layers.

    Anything without weights may follow the addition: an activation, a norm, a mask, a view. Two things only look like
    a sum of paths and do not count: adding a parameter (a bias, a norm's beta), and a formula that uses one tensor
    twice (``x - mean(x)``), whose two sides start at the same layer.

    Args:
        out: what a module returned.
        walk: the one of this forward pass, so that a long stream is not walked again from each of its blocks.
    """
    return out.grad_fn is not None and (walk or Walk()).ends_in_sum(out.grad_fn)


class Walk:
    """Looks back from the outputs of one forward pass; remembers which additions it has settled."""

    def __init__(self) -> None:
        self._settled: dict[Any, bool] = {}

    def ends_in_sum(self, node: Any) -> bool:
        """Does a sum of paths lie between ``node`` and the nearest layer with weights?"""
        queue: list[Any] = [node]
        seen: set[Any] = set()
        while queue and len(seen) < _BUDGET:
            here = queue.pop(0)
            if here in seen or _has_weights(here.name()):
                continue
            seen.add(here)
            if self._is_sum(here, _DEPTH):
                return True
            queue += _computed(here)
        return False

    def _is_sum(self, node: Any, depth: int) -> bool:
        if not _SUM.match(node.name()):
            return False
        if node not in self._settled:
            paths = _computed(node)
            self._settled[node] = len(paths) == 2 and (depth == 0 or self._differ(paths[0], paths[1], depth - 1))
        return self._settled[node]

    def _differ(self, a: Any, b: Any, depth: int) -> bool:
        """Both come from layers (not from parameters alone), and not from the same ones."""
        ours, theirs = self._starts(a, depth), self._starts(b, depth)
        return bool(ours and theirs) and ours != theirs

    def _starts(self, node: Any, depth: int) -> set[Any]:
        """Where a path begins: the nearest layers with weights or sums of paths, going back from ``node``."""
        queue: list[Any] = [node]
        seen: set[Any] = set()
        found: set[Any] = set()
        while queue and len(seen) < _BUDGET:
            here = queue.pop()
            if here in seen:
                continue
            seen.add(here)
            if _has_weights(here.name()) or self._is_sum(here, depth):
                found.add(here)
            else:
                queue += _computed(here)
        return found


@lru_cache(maxsize=1024)
def _has_weights(name: str) -> bool:
    return _WEIGHTS.search(name) is not None


def _computed(node: Any) -> list[Any]:
    """Its inputs that were computed: not parameters, nor views of one."""
    return [parent for parent, _ in node.next_functions if parent is not None and not _is_parameter(parent)]


def _is_parameter(node: Any) -> bool:
    for _ in range(4):
        if "AccumulateGrad" in node.name():
            return True
        parents = [p for p, _ in node.next_functions if p is not None]
        if len(parents) != 1 or _has_weights(node.name()):
            return False
        node = parents[0]
    return False
