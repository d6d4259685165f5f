"""Is this output the sum of two paths? Read off the autograd graph, so that no class name has to be known."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

#: Operations that a block may end with after its addition: an activation, a norm (post-norm blocks), a mask, a view.
_PASS = re.compile(
    r"relu|gelu|silu|threshold|hardswish|hardtanh|elu|mul|div|dropout|view|reshape|permute|transpose|clone|alias|"
    r"contiguous|to_?copy|layernorm|batchnorm|groupnorm|rmsnorm",
    re.IGNORECASE,
)
_LEAF_PATH = re.compile(r"accumulategrad|view|reshape|expand|unsqueeze|permute|to_?copy", re.IGNORECASE)
_STEPS = 6


def is_sum_of_paths(out: Tensor) -> bool:
    """Whether ``out`` is ``a + b`` of two computed tensors, up to an activation, norm, mask or view after the addition.

    Adding a parameter (a bias, a norm's beta) does not count, and neither does what was computed without a graph.
    """
    node: Any = out.grad_fn
    for _ in range(_STEPS):
        if node is None:
            return False
        name = node.name()
        if re.match(r"(Add|Sub)(cmul)?Backward", name):
            paths = [parent for parent, _ in node.next_functions if parent is not None]
            if len(paths) == 2 and not any(_is_parameter(p) for p in paths):
                return True
            node = next((p for p in paths if not _is_parameter(p)), None)
        elif _PASS.search(name):
            node = next((p for p, _ in node.next_functions if p is not None and not _is_parameter(p)), None)
        else:
            return False
    return False


def _is_parameter(node: Any) -> bool:
    """Does this branch lead to a leaf through views alone?"""
    for _ in range(_STEPS):
        name = node.name()
        if "AccumulateGrad" in name:
            return True
        parents = [p for p, _ in node.next_functions if p is not None]
        if not _LEAF_PATH.search(name) or len(parents) != 1:
            return False
        node = parents[0]
    return False
