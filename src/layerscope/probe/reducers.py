"""What is computed on one tensor while it passes by: reductions along contiguous memory, then it is gone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerscope.probe.layouts import View
from layerscope.probe.plans import Plan
from layerscope.probe.records import Layout
from layerscope.probe.summary import Side, summarise
from layerscope.quantities.moments import Tables

SKETCH_VALUES = 2048
#: Tables of so few positions would be a sizeable copy of the tensor: unless small, they are summarised at once.
MIN_TABLE_POSITIONS = 8
SMALL_TABLE = 16384


@dataclass(slots=True)
class Reduced:
    """What is kept of one tensor; all on its device."""

    layout: Layout
    samples: int
    positions: int
    tables: Tables | None = None
    summary: Tensor | None = None
    resultant: Tensor | None = None
    """0-d: squared length of the sum of the samples' unit vectors."""
    tokens: Tensor | None = None
    """[2, N]: the same over each sample's tokens, and how many tokens are not zero."""
    gram: Tensor | None = None
    sketch: Tensor | None = None
    absmax: Tensor | None = None
    normalizes: Reduced | None = None
    """For a batch norm's output that was not read: what is kept of its input."""


class Reducer:
    """Reduces tensors; holds the scratch memory that keeps squaring from allocating a tensor's size every time."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def __call__(self, v: View, todo: Plan, source: Reduced | None = None) -> Reduced:
        """All reductions of ``todo`` on one output; with ``source``, all but the moments, which follow from it."""
        data = v.data
        kept = Reduced(v.layout, len(data), v.positions, normalizes=source)
        if source is not None:
            if todo.gram_samples and len(data) > 1:
                kept.gram = _gram(data.flatten(1), todo)
            return kept
        tables = self.tables(v)
        if v.positions < MIN_TABLE_POSITIONS and tables.sums.numel() > SMALL_TABLE:
            kept.summary = summarise([Side(tables, (tables.sums.shape[1],))])[0]
        else:
            kept.tables = tables
        if len(data) > 1 and (todo.cosine or todo.gram_samples):
            flat = data.flatten(1)
            whole = len(data) <= todo.gram_samples and flat.shape[1] <= todo.gram_features
            if todo.cosine and not whole:  # else it follows from the Gram matrix
                kept.resultant = _resultant(flat, torch.linalg.vector_norm(tables.norms, dim=1))
            if v.layout == "token":
                kept.tokens = _token_resultants(data)
            if todo.gram_samples:
                kept.gram = _gram(flat, todo)
        if todo.sketch:
            line = data.flatten()
            kept.sketch = line[:: coprime(max(1, line.numel() // SKETCH_VALUES), line.numel())].clone()
        if todo.absmax:
            low, high = data.aminmax()
            kept.absmax = torch.maximum(high, -low)
        return kept

    def tables(self, v: View) -> Tables:
        """Sums and norms over positions."""
        data = v.data
        if v.positions == 1:
            sums = data.flatten(1).clone()  # the tensor itself may be overwritten in place
            return Tables(sums, sums.abs(), 1)
        if not v.channels_first:
            if data.device.type != "cpu":
                return Tables(data.sum(1), torch.linalg.vector_norm(data, dim=1), v.positions)
            squares = self._square(data).sum(1).sqrt_()
            return Tables(data.sum(1), squares, v.positions)
        norms = torch.linalg.vector_norm(data, dim=2)  # the slower one first: the sum then finds the data in the cache
        return Tables(data.sum(2), norms, v.positions)

    def _square(self, x: Tensor) -> Tensor:
        buffer = self._squares
        if buffer is None or buffer.numel() < x.numel() or buffer.dtype != x.dtype:
            self._squares = buffer = torch.empty(x.numel(), dtype=x.dtype)
        return torch.mul(x, x, out=buffer[: x.numel()].view(x.shape))


def square_norm(t: Tensor) -> Tensor:
    """0-d, float32 or wider: the sum of squares of a tensor of any shape, strides and float dtype.

    On the CPU what runs over or under in float32 is read again in float64.
    """
    t = t.detach()
    if t.is_cpu and t.dtype is torch.float32 and (line := _line(t)) is not None:
        square = torch.dot(line, line)
        return square if _SAFE[0] < square.item() < _SAFE[1] else _square(t, torch.float64)
    t = torch.view_as_real(t) if t.is_complex() else t
    wide = torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype
    return _square(t, torch.float64 if t.is_cpu else wide)


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """Euclidean norms of tensors of any shapes and float dtypes: on the CPU one call for all."""
    plain = [t.detach() for t in tensors]
    if not all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in plain):
        return [math.sqrt(square) for square in host([square_norm(t) for t in plain])]
    found = [norm.item() for norm in torch._foreach_norm(plain)] if plain else []
    return [
        norm if _SAFE[0] < norm * norm < _SAFE[1] else math.sqrt(float(square_norm(t)))
        for norm, t in zip(found, plain, strict=True)
    ]


def host(scalars: Sequence[Tensor]) -> Iterator[float]:
    """0-d tensors as numbers: one copy from an accelerator, none from the CPU."""
    if all(s.device.type == "cpu" for s in scalars):
        return (s.item() for s in scalars)
    return iter(torch.stack([s.double() for s in scalars]).tolist())


def _square(t: Tensor, dtype: torch.dtype) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(t, dtype=dtype)
    return norm.square()


#: Sums of squares in this range have lost nothing that matters to float32's own range.
_SAFE = (1e-26, 1e38)


def _line(t: Tensor) -> Tensor | None:
    """All entries in the order they lie in memory, [numel], without a copy; None where that needs one."""
    if t.is_contiguous():
        return t.view(-1)
    if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last):
        return t.movedim(1, -1).view(-1)
    return None


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


def _gram(flat: Tensor, todo: Plan) -> Tensor:
    rows = flat[: todo.gram_samples]
    stride = -(-flat.shape[1] // todo.gram_features)
    if stride > 1:
        rows = rows[:, :: coprime(stride, flat.shape[1])].contiguous()
    return rows @ rows.t()
