"""The integer network written in the operations of Concrete, with the bounds of every node said beforehand.

Concrete takes the range of each value from sample inputs; a value outside what the samples showed is computed wrongly
without an error. So every node carries a tag, and before compilation the tagged nodes get our sound ranges. Only
operations that were checked are emitted: linear maps, exact truncation, one-variable lookups, ``q + relu(p - q)``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerscope.methods.encrypted.errors import EngineError, WidthError
from layerscope.methods.encrypted.graph import (
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Requant,
    Sign,
    SumPool,
    Window,
    width_of,
)
from layerscope.methods.encrypted.ranges import bounds

#: Widest lookup that is worth its keys: each further bit costs about 2.3 times more.
LOOKUP_BITS = 6
#: Concrete refuses wider integers altogether.
INTEGER_BITS = 16

Box = tuple[int, int]


@dataclass
class Emitted:
    """The function to compile and the sound range of each tag."""

    function: Callable[[Any], Any]
    ranges: dict[str, Box] = field(default_factory=dict)


def lookup_widths(graph: Graph) -> dict[str, int]:
    """Bits that reach the lookup of each activation and max, after exact truncation."""
    widths: dict[str, int] = {}
    for op in graph.ops:
        if isinstance(op, Requant):
            value = graph.values[op.inputs[0]]
            widths[op.name] = max(
                width_of(int(lo), int(hi)) for lo, hi in zip(value.lo >> op.shift, value.hi >> op.shift, strict=True)
            )
        elif isinstance(op, Sign):
            widths[op.name] = min(2, graph.values[op.inputs[0]].width)
        elif isinstance(op, MaxPool) and op.window.taps > 1:
            value = graph.values[op.inputs[0]]
            widths[op.name] = 1 + width_of(0, int(value.hi.max()) - int(value.lo.min()))
    return widths


def check(graph: Graph, limit: int = LOOKUP_BITS) -> None:
    """Raise for a network that this engine would evaluate slowly, wrongly or not at all.

    Raises:
        WidthError: a lookup wider than ``limit`` bits, or an integer wider than the engine's 16.
        EngineError: a network with truncating shifts.
    """
    for name, width in lookup_widths(graph).items():
        if width > limit:
            raise WidthError(name, width, limit, "concrete")
    for op, value in zip(graph.ops, graph.values, strict=True):
        if value.width > INTEGER_BITS:
            raise WidthError(op.name, value.width, INTEGER_BITS, "concrete")
        if isinstance(op, Conv) and op.truncating:
            raise EngineError(f"{op.name}: truncating shifts cost a lookup a term; quantise with shift='exact'")


def emit(graph: Graph, fhe: Any) -> Emitted:
    """The whole network as one function of an encrypted tensor [1, C, H, W]."""
    emitter = _Emitter(graph, fhe)
    return Emitted(emitter.run, emitter.ranges)


class _Emitter:
    def __init__(self, graph: Graph, fhe: Any) -> None:
        self.graph, self.fhe = graph, fhe
        self.ranges: dict[str, Box] = {}

    def run(self, x: Any) -> Any:
        """Called by the compiler with tracers, and with arrays to check."""
        values: list[Any] = []
        self.count = 0
        for index, op in enumerate(self.graph.ops):
            inputs = [values[i] for i in op.inputs]
            match op:
                case Input():
                    values.append(x)
                case Conv():
                    values.append(self._conv(index, op, inputs[0]))
                case Requant():
                    values.append(self._requant(index, op, inputs[0]))
                case Sign():
                    values.append(self._sign(index, op, inputs[0]))
                case MaxPool():
                    values.append(self._maxpool(index, op, inputs[0]))
                case SumPool():
                    channels = op.shape[0]
                    ones = np.ones((channels, 1, *op.window.kernel), np.int64)
                    values.append(
                        self._linear(inputs[0], ones, op.window, channels, self._box(op.inputs[0]), self._box(index))
                    )
                case Add():
                    values.append(self._add(index, op, inputs))
                case Concat():
                    values.append(self._joined(inputs, self._box(index)))
                case Flatten():
                    values.append(self._free(partial(_reshaped, inputs[0], (1, *op.shape)), self._box(index)))
        return values[-1].reshape((1, int(np.prod(self.graph.ops[-1].shape))))

    def _box(self, index: int) -> Box:
        value = self.graph.values[index]
        return int(value.lo.min()), int(value.hi.max())

    def _free(self, make: Callable[[], Any], box: Box) -> Any:
        """Make one node under a tag of its own and note its range."""
        tag = f"n{self.count}"
        self.count += 1
        self.ranges[tag] = box
        with self.fhe.tag(tag):
            return make()

    def _linear(self, x: Any, q: NDArray[Any], window: Window, groups: int, before: Box, box: Box) -> Any:
        outputs = q.shape[0]
        if window.kernel == (1, 1) and x.shape[2:] == (1, 1) and groups == 1:
            weight = np.ascontiguousarray(q[:, :, 0, 0].T)
            flat = self._free(lambda: x.reshape((1, x.shape[1])), before)
            flat = self._free(lambda: flat @ weight, box)
            return self._free(lambda: flat.reshape((1, outputs, 1, 1)), box)
        x = self._padded(x, window.padding, before)
        return self._free(
            lambda: self.fhe.conv(x, q, None, strides=window.stride, dilations=window.dilation, group=groups),
            box,
        )

    def _padded(self, x: Any, padding: tuple[int, int], box: Box) -> Any:
        """Zeros around a map; the engine's convolution does not pad."""
        wide = min(box[0], 0), max(box[1], 0)
        for axis, size in zip((2, 3), padding, strict=True):
            if size:
                first = (slice(None),) * axis + (slice(0, 1),)
                row = self._free(partial(operator.getitem, x, first), box)
                zero = self._free(partial(operator.mul, row, 0), (0, 0))
                parts = (*[zero] * size, x, *[zero] * size)
                x = self._free(partial(np.concatenate, parts, axis=axis), wide)
        return x

    def _conv(self, index: int, op: Conv, x: Any) -> Any:
        source = self.graph.values[op.inputs[0]]
        bare = replace(op, bias=np.zeros_like(op.bias))
        lo, hi = bounds(bare, [(source.lo, source.hi)], [self.graph.ops[op.inputs[0]].shape])
        before = self._box(op.inputs[0])
        acc = self._linear(x, op.q, op.window, op.groups, before, (int(lo.min()), int(hi.max())))
        if not op.bias.any():
            return acc
        bias = np.ascontiguousarray(np.broadcast_to(op.bias, op.shape))[None]
        return self._free(lambda: acc + bias, self._box(index))

    def _requant(self, index: int, op: Requant, acc: Any) -> Any:
        """One truncation and one lookup for each run of channels that share a shift."""
        value, top = self.graph.values[op.inputs[0]], 2**op.bits - 1
        runs = np.split(np.arange(len(op.shift)), np.flatnonzero(np.diff(op.shift)) + 1)
        groups: dict[int, list[NDArray[Any]]] = {}
        for run in runs:
            groups.setdefault(int(op.shift[run[0]]), []).append(run)
        pieces: dict[int, Any] = {}
        for shift, members in groups.items():
            channels = np.concatenate(members)
            box = int(value.lo[channels].min()), int(value.hi[channels].max())
            parts = [self._channels(acc, run, box) for run in members]
            joined = self._joined(parts, box)
            code_box = min(max(box[0], 0) >> shift, top), min(max(box[1], 0) >> shift, top)
            codes = self._lookup(joined, shift, box, _requantizer(shift, top), code_box)
            start = 0
            for run in members:
                pieces[int(run[0])] = self._channels(codes, np.arange(start, start + len(run)), code_box)
                start += len(run)
        return self._joined([pieces[first] for first in sorted(pieces)], self._box(index))

    def _joined(self, parts: list[Any], box: Box) -> Any:
        return parts[0] if len(parts) == 1 else self._free(lambda: np.concatenate(tuple(parts), axis=1), box)

    def _channels(self, x: Any, run: NDArray[Any], box: Box) -> Any:
        if len(run) == x.shape[1]:
            return x
        first, last = int(run[0]), int(run[-1]) + 1
        return self._free(lambda: x[:, first:last, :, :], box)

    def _lookup(self, x: Any, lost: int, box: Box, table: Callable[[Any], Any], out: Box) -> Any:
        if lost:
            kept = (box[0] >> lost) << lost, (box[1] >> lost) << lost
            before = x
            x = self._free(lambda: self.fhe.truncate_bit_pattern(before, lsbs_to_remove=lost), kept)
        cut = x
        return self._free(lambda: self.fhe.univariate(table)(cut), out)

    def _sign(self, index: int, op: Sign, x: Any) -> Any:
        box = self._box(op.inputs[0])
        lost = max(0, width_of(*box) - 2)
        return self._lookup(x, lost, box, lambda v: (v >= 0).astype(np.int64), (0, 1))

    def _maxpool(self, index: int, op: MaxPool, x: Any) -> Any:
        box, w = self._box(op.inputs[0]), op.window
        taps = [self._tap(x, op, i, j, box) for i in range(w.kernel[0]) for j in range(w.kernel[1])]
        while len(taps) > 1:
            paired = [self._max(p, q, box) for p, q in zip(taps[::2], taps[1::2], strict=False)]
            taps = paired + ([taps[-1]] if len(taps) % 2 else [])
        return taps[0]

    def _tap(self, x: Any, op: MaxPool, i: int, j: int, box: Box) -> Any:
        w, (channels, height, width) = op.window, op.shape
        if w.padding == (0, 0):
            a, b = i * w.dilation[0], j * w.dilation[1]
            rows, columns = (
                slice(a, a + w.stride[0] * (height - 1) + 1, w.stride[0]),
                slice(b, b + w.stride[1] * (width - 1) + 1, w.stride[1]),
            )
            return self._free(lambda: x[:, :, rows, columns], box)
        # codes are unsigned, so a padded zero never beats a real one; a one-hot convolution pads for free
        one = np.zeros((channels, 1, *w.kernel), np.int64)
        one[:, :, i, j] = 1
        return self._linear(x, one, w, channels, box, (0, box[1]))

    def _max(self, p: Any, q: Any, box: Box) -> Any:
        reach = box[1] - box[0]
        difference = self._free(lambda: p - q, (-reach, reach))
        gain = self._free(lambda: self.fhe.univariate(lambda v: np.maximum(v, 0))(difference), (0, reach))
        return self._free(lambda: q + gain, box)

    def _add(self, index: int, op: Add, inputs: list[Any]) -> Any:
        sides = []
        for x, source, shift in zip(inputs, op.inputs, (op.left, op.right), strict=True):
            if shift.any():
                value = self.graph.values[source]
                factor = (1 << shift).reshape(1, -1, 1, 1)
                box = int((value.lo << shift).min()), int((value.hi << shift).max())
                sides.append(self._free(partial(operator.mul, x, factor), box))
            else:
                sides.append(x)
        return self._free(lambda: sides[0] + sides[1], self._box(index))


def _requantizer(shift: int, top: int) -> Callable[[Any], Any]:
    def requantized(v: Any) -> Any:
        return np.minimum(np.maximum(v, 0) >> shift, top)

    return requantized  # the engine wants a function with a name, not a partial


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape)
