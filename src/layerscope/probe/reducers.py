"""What is computed on one tensor while it passes by: a handful of reductions along contiguous memory, then it is gone.

Costs per tensor in reads of its memory: the two tables 2, cosine 1, 32-sample Gram matrix about 2, gradient norm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from layerscope.probe.layouts import View
from layerscope.probe.records import Layout, Level, Role
from layerscope.probe.summary import summarise
from layerscope.quantities.moments import Tables

SKETCH_VALUES = 4096
GRAM_SAMPLES = 32
GRAM_FEATURES = 16384
#: Below this many positions the tables would be a sizeable copy of the tensor, so they are summarised at once.
MIN_TABLE_POSITIONS = 8


class Plan(NamedTuple):
    """Which reductions a tensor gets."""

    cosine: bool
    gram_samples: int
    """0: no Gram matrix."""
    gram_features: int
    sketch: bool
    absmax: bool


def plan(level: Level, role: Role) -> Plan:
    """The reductions of one level for one role; Gram matrices and sketches only where signals are read off."""
    outlet = role in ("activation", "block")
    if level == "light":
        return Plan(cosine=outlet, gram_samples=0, gram_features=0, sketch=False, absmax=False)
    if level == "standard":
        return Plan(True, GRAM_SAMPLES if outlet else 0, GRAM_FEATURES, outlet, False)
    every = 1 << 62
    return Plan(True, every if outlet or role == "norm" else 0, every, True, True)


@dataclass(slots=True)
class Reduced:
    """What is kept of one tensor; all on its device."""

    layout: Layout
    samples: int
    tables: Tables | None
    summary: Tensor | None
    resultant: Tensor | None = None
    """0-d: squared length of the sum of the samples' unit vectors."""
    tokens: Tensor | None = None
    """[2, N]: the same over each sample's tokens, and how many tokens are not zero."""
    gram: Tensor | None = None
    sketch: Tensor | None = None
    absmax: Tensor | None = None


def reduce_forward(v: View, todo: Plan, scratch: Scratch) -> Reduced:
    """All reductions of ``todo`` on one output."""
    data = v.data
    if v.positions == 1:
        sums = data.flatten(1)
        tables = Tables(sums, sums.abs(), 1)
    elif v.channels_first:
        tables = Tables(data.sum(2), torch.linalg.vector_norm(data, dim=2), v.positions)
    else:
        tables = Tables(data.sum(1), scratch.column_norms(data), v.positions)
    kept = Reduced(v.layout, len(data), tables, None)
    flat = data.flatten(1)
    if v.positions < MIN_TABLE_POSITIONS:
        kept.tables, kept.summary = None, summarise(tables)
    if todo.cosine and len(flat) > 1:
        kept.resultant = _resultant(flat, torch.linalg.vector_norm(tables.norms, dim=1))
        if v.layout == "token":
            kept.tokens = _token_resultants(data)
    if todo.gram_samples and len(flat) > 1:
        rows = flat[: todo.gram_samples]
        stride = -(-flat.shape[1] // todo.gram_features)
        if stride > 1:
            rows = rows[:, :: coprime(stride, flat.shape[1])].contiguous()
        kept.gram = rows @ rows.t()
    if todo.sketch:
        line = data.flatten()
        kept.sketch = line[:: coprime(max(1, line.numel() // SKETCH_VALUES), line.numel())].clone()
    if todo.absmax:
        low, high = data.aminmax()
        kept.absmax = torch.maximum(high, -low)
    return kept


def reduce_gradient(grad: Tensor) -> Tensor:
    """0-d float32 or wider: Frobenius norm."""
    wide = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else None
    norm: Tensor = torch.linalg.vector_norm(grad.detach(), dtype=wide)
    return norm


class Scratch:
    """One reusable buffer, so that squaring a tensor does not allocate its size again and again."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def column_norms(self, x: Tensor) -> Tensor:
        """[N, C] from [N, S, C]: norm over the middle axis, summed along contiguous memory."""
        if x.device.type != "cpu":
            norms: Tensor = torch.linalg.vector_norm(x, dim=1)
            return norms
        size = x.numel()
        old = self._buffer
        if old is None or old.numel() < size or old.dtype != x.dtype:
            self._buffer = old = torch.empty(size, dtype=x.dtype)
        square = torch.mul(x, x, out=old[:size].view(x.shape))
        return square.sum(1).sqrt_()


def coprime(stride: int, length: int) -> int:
    """The smallest number >= ``stride`` that shares no factor with ``length``: steps that beat no axis."""
    while math.gcd(stride, length) > 1:
        stride += 1
    return stride


def _resultant(flat: Tensor, norms: Tensor) -> Tensor:
    weights = norms.clamp_min(torch.finfo(norms.dtype).tiny).reciprocal()
    square: Tensor = torch.linalg.vector_norm(torch.mv(flat.t(), weights)).square()
    return square


def _token_resultants(tokens: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(tokens, dim=2)
    weights = norms.clamp_min(torch.finfo(norms.dtype).tiny).reciprocal()
    sums = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)
    return torch.stack((sums.square().sum(1), (norms != 0).sum(1).to(sums.dtype)))
