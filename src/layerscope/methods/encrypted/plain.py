"""The reference backend: the integer network on torch, exact. Every other backend must equal it bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.methods.encrypted.graph import (
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Ints,
    MaxPool,
    Op,
    Requant,
    Sign,
    SumPool,
)
from layerscope.methods.encrypted.ranges import truncation


def run(graph: Graph, codes: Tensor, *, debug: bool = False) -> Tensor:
    """The answer of every sample: codes [N, C, H, W] int64 -> int64.

    With ``debug`` every value is checked against its sound range; a violation is a bug of ours, never of the caller.
    """
    return trajectory(graph, codes, debug=debug)[-1]


def trajectory(graph: Graph, codes: Tensor, *, debug: bool = False) -> list[Tensor]:
    """Every operation's output."""
    values: list[Tensor] = []
    for op, value in zip(graph.ops, graph.values, strict=True):
        out = execute(op, [values[i] for i in op.inputs]) if op.inputs else codes.long()
        if debug:
            lo, hi = _channels(value.lo, out), _channels(value.hi, out)
            assert bool(((out >= lo) & (out <= hi)).all()), f"{op.name}: a value left its sound range"
        values.append(out)
    return values


def execute(op: Op, inputs: list[Tensor]) -> Tensor:
    """One operation on int64 tensors [N, C, H, W]."""
    x = inputs[0]
    match op:
        case Conv():
            return _conv(op, x)
        case Requant():
            return (x.clamp(min=0) >> _channels(op.shift, x)).clamp(max=2**op.bits - 1)
        case Sign():
            return (x >= 0).long()
        case MaxPool():
            w = op.window
            # float64 holds every code exactly; torch pads a max-pool with -infinity, so padding never wins
            return F.max_pool2d(x.double(), w.kernel, w.stride, w.padding, w.dilation).long()
        case SumPool():
            w = op.window
            return F.avg_pool2d(x.double(), w.kernel, w.stride, w.padding, divisor_override=1).long()
        case Add():
            return (x << _channels(op.left, x)) + (inputs[1] << _channels(op.right, x))
        case Concat():
            return torch.cat(inputs, 1)
        case Flatten():
            return x.reshape(x.shape[0], -1, 1, 1)
    raise AssertionError(f"no rule for {op.kind}")


def _channels(a: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a)).to(like.device).view(-1, 1, 1)


def _conv(op: Conv, x: Tensor) -> Tensor:
    w = op.window
    q, bias = torch.from_numpy(op.q).to(x.device), torch.from_numpy(op.bias).to(x.device)

    def linear(codes: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        out = F.conv2d(codes.to(dtype), weight.to(dtype), None, w.stride, w.padding, w.dilation, op.groups)
        return out.round().long()

    reach = float(x.abs().max() if x.numel() else 0) * float(q.abs().flatten(1).sum(1).max())
    assert reach < 2**53, f"{op.name}: accumulators beyond 2^53 are not exact in float64"
    # the narrower dtype is twice as fast and exact as long as every partial sum is an integer below 2^24
    dtype = torch.float32 if reach < 2**24 else torch.float64
    if not op.truncating:
        return linear(x, q, dtype) + bias
    top = torch.from_numpy(truncation(op)).to(x.device)
    out = torch.zeros((x.shape[0], *op.shape), dtype=torch.int64, device=x.device)
    for lost in range(int(top.max()) + 1):
        size = torch.where(top >= lost, 1 << (top - lost).clamp(min=0), torch.zeros_like(top))
        mask = torch.where((q.abs() == size) & (q != 0), q.sign(), torch.zeros_like(q))
        out = out + linear(x >> lost, mask, dtype)
    return out + bias
