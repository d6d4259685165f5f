"""Sound ranges: bounds on every accumulator that no input can leave, and that some input of the layer reaches.

For a layer whose inputs lie in [lo_i, hi_i]:  lo = b + sum_i min(q_i lo_i, q_i hi_i),  hi likewise with max. With
unsigned codes in [0, x_max] this is  b + x_max sum min(q, 0)  and  b + x_max sum max(q, 0).  Ranges taken from
calibration data, which most tools use, make an overflow improbable; these make it impossible.
"""

from __future__ import annotations

import numpy as np

from layerscope.methods.encrypted.errors import WidthError
from layerscope.methods.encrypted.graph import (
    Add,
    Concat,
    Conv,
    Flatten,
    Input,
    Ints,
    MaxPool,
    Op,
    Requant,
    Sign,
    SumPool,
)

Bounds = tuple[Ints, Ints]

#: Bits of the integers that every backend computes exactly: the reference sums in float64.
EXACT_BITS = 53


def bounds(op: Op, inputs: list[Bounds], in_shapes: list[tuple[int, int, int]]) -> Bounds:
    """Per-channel [lo, hi] of ``op``'s output from those of its inputs.

    Raises:
        WidthError: values beyond 53 bits, which the reference could not compute exactly.
    """
    _fits(op, inputs)
    match op:
        case Input():
            top = np.full(op.shape[0], 2**op.bits - 1, np.int64)
            return np.zeros_like(top), top
        case Conv():
            return _conv(op, *inputs[0])
        case Requant():
            lo, hi = (np.minimum(np.maximum(side, 0) >> op.shift, 2**op.bits - 1) for side in inputs[0])
            return lo, hi
        case Sign():
            lo, hi = ((side >= 0).astype(np.int64) for side in inputs[0])
            return lo, hi
        case MaxPool():
            return inputs[0]
        case SumPool():
            lo, hi = inputs[0]
            if op.window.padding != (0, 0):
                lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
            return lo * op.window.taps, hi * op.window.taps
        case Add():
            (xlo, xhi), (ylo, yhi) = inputs
            return (xlo << op.left) + (ylo << op.right), (xhi << op.left) + (yhi << op.right)
        case Concat():
            return np.concatenate([b[0] for b in inputs]), np.concatenate([b[1] for b in inputs])
        case Flatten():
            area = in_shapes[0][1] * in_shapes[0][2]
            return np.repeat(inputs[0][0], area), np.repeat(inputs[0][1], area)
    raise AssertionError(f"no range rule for {op.kind}")


def _fits(op: Op, inputs: list[Bounds]) -> None:
    """Refuse what int64 or float64 would get wrong, before computing it; sizes as floats, which do not wrap around."""
    tops = [max(float(np.abs(lo).max()), float(np.abs(hi).max()), 1.0) for lo, hi in inputs]
    if isinstance(op, Conv):
        rows = np.abs(op.q.astype(np.float64)).reshape(len(op.q), -1).sum(1)
        reach = tops[0] * float(rows.max()) + float(np.abs(op.bias.astype(np.float64)).max())
    elif isinstance(op, SumPool):
        reach = tops[0] * op.window.taps
    elif isinstance(op, Add):
        shifts = (op.left, op.right)
        reach = sum(top * 2.0 ** float(min(s.max(), 1000)) for top, s in zip(tops, shifts, strict=True))
    else:
        return
    if reach >= 2.0**EXACT_BITS:
        raise WidthError(op.name, 1 + int(np.ceil(np.log2(reach))), EXACT_BITS, "integer")


def _conv(op: Conv, lo: Ints, hi: Ints) -> Bounds:
    if op.window.padding != (0, 0):
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    outputs, per_group = op.q.shape[0], op.q.shape[1]
    group = np.repeat(np.arange(op.groups), outputs // op.groups)
    channel = group[:, None] * per_group + np.arange(per_group)  # [O, I/g]: which input channel a weight reads
    low, high = terms(op, lo[channel][:, :, None, None]), terms(op, hi[channel][:, :, None, None])
    bias = op.bias.reshape(outputs, -1)
    return (
        np.minimum(low, high).sum((1, 2, 3)) + bias.min(1),
        np.maximum(low, high).sum((1, 2, 3)) + bias.max(1),
    )


def terms(op: Conv, codes: Ints) -> Ints:
    """The summands of one output for input codes broadcast against q [O, I/g, kh, kw]."""
    if not op.truncating:
        return np.asarray(op.q * codes, np.int64)
    magnitude = np.abs(op.q)
    return np.asarray(np.sign(op.q) * ((codes * magnitude) >> truncation(op)), np.int64)


def truncation(op: Conv) -> Ints:
    """[O, 1, 1, 1]: the bits that a truncating term loses, log2 of the channel's largest weight."""
    top = np.abs(op.q).reshape(op.q.shape[0], -1).max(1)
    return np.array([max(int(t).bit_length() - 1, 0) for t in top], np.int64).reshape(-1, 1, 1, 1)
