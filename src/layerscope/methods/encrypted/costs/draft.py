"""A network as it would be quantised, without data: enough for its cost. Holds what no integer network can.

Shifts are the smallest that leave ``lookup_bits`` bits for each activation; a residual sum aligns the narrower side to
the wider one. Biases are left out: they change a count by a handful of gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layerscope.methods.encrypted.errors import WidthError
from layerscope.methods.encrypted.floatgraph import FloatGraph, Step
from layerscope.methods.encrypted.graph import (
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Ints,
    MaxPool,
    Op,
    Requant,
    Sign,
    SumPool,
    Value,
    width_of,
)
from layerscope.methods.encrypted.lowering import Settings
from layerscope.methods.encrypted.quantizer import log_quantize
from layerscope.methods.encrypted.ranges import bounds


@dataclass(frozen=True)
class Opaque(Op):
    """What has no exact integer form; its output is taken for fresh activation codes."""

    kind: ClassVar[str] = "opaque"
    label: str
    reason: str


def draft(graph: FloatGraph, settings: Settings) -> Graph:
    """An integer network with the weights, widths and shifts of ``graph``, for counting only."""
    settings.check()
    limit = settings.lookup_bits or 6
    ops: list[Op] = []
    values: list[Value] = []
    place: list[int] = []
    for step in graph.steps:
        inputs = tuple(place[i] for i in step.inputs)
        if step.op == "scale":
            place.append(inputs[0])  # metadata in the integer network, free
            continue
        op = _op(step, inputs, [values[i] for i in inputs], settings, limit)
        if isinstance(op, Opaque):
            lo, hi = _fresh(step, settings)
        else:
            try:
                lo, hi = bounds(op, [(values[i].lo, values[i].hi) for i in inputs], [ops[i].shape for i in inputs])
            except WidthError as error:
                op = Opaque(step.name, inputs, step.shape, step.kind, str(error))
                lo, hi = _fresh(step, settings)
        ops.append(op)
        values.append(Value(lo, hi, np.ones(len(lo)), np.zeros(len(lo))))
        place.append(len(ops) - 1)
    return Graph(tuple(ops), tuple(values))


def _fresh(step: Step, settings: Settings) -> tuple[Ints, Ints]:
    return np.zeros(step.shape[0], np.int64), np.full(step.shape[0], 2**settings.act_bits - 1, np.int64)


def _op(step: Step, inputs: tuple[int, ...], before: list[Value], s: Settings, limit: int) -> Op:
    name, shape, window = step.name, step.shape, step.window
    if step.op == "input":
        return Input(name, (), shape, s.input_bits or s.act_bits)
    if step.op == "conv":
        assert step.weight is not None
        assert window is not None
        codes = log_quantize(step.weight, s.bits, rounding=s.rounding, per_channel=s.per_channel)
        q = (codes if s.shift == "truncating" else codes.reduced()).q.numpy()
        bias = np.zeros((len(q), 1, 1), np.int64)
        return Conv(name, inputs, shape, q, bias, window, step.groups, s.shift == "truncating")
    if step.op == "relu":
        return Requant(name, inputs, shape, _shifts(before[0], limit), s.act_bits)
    if step.op == "sign":
        return Sign(name, inputs, shape)
    if step.op == "maxpool":
        assert window is not None
        return MaxPool(name, inputs, shape, window)
    if step.op == "avgpool":
        assert window is not None
        return SumPool(name, inputs, shape, window)
    if step.op == "add":
        left, right = (np.full(shape[0], n, np.int64) for n in _aligned(before[0], before[1]))
        return Add(name, inputs, shape, left, right)
    if step.op == "concat":
        return Concat(name, inputs, shape)
    if step.op == "flatten":
        return Flatten(name, inputs, shape)
    return Opaque(name, inputs, shape, step.kind, f"{step.reason}; {step.remedy}")


def _shifts(value: Value, limit: int) -> Ints:
    widths = [width_of(int(lo), int(hi)) for lo, hi in zip(value.lo, value.hi, strict=True)]
    return np.maximum(np.array(widths, np.int64) - limit, 0)


def _aligned(x: Value, y: Value) -> tuple[int, int]:
    wide_x, wide_y = x.width - x.signed, y.width - y.signed
    return max(0, wide_y - wide_x), max(0, wide_x - wide_y)
