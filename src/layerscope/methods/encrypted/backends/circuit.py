"""The integer network as gates, evaluated bit-sliced: what gate-by-gate encryption would compute, without keys.

Every output unit gets the circuit of its own taps (units at a padded border have fewer), so gates and depths are
counted exactly, and the result must equal the reference bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope._show import Shown
from layerscope.methods.encrypted.circuits.accumulators import Accumulator
from layerscope.methods.encrypted.circuits.activations import maximum_tree, requantize, sign
from layerscope.methods.encrypted.circuits.gates import Builder, Circuit
from layerscope.methods.encrypted.circuits.neuron import Tap, neuron
from layerscope.methods.encrypted.circuits.simulate import evaluate, pack_rows, unpack
from layerscope.methods.encrypted.errors import EncryptedError
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
    Window,
    width_of,
)
from layerscope.methods.encrypted.ranges import truncation


@dataclass(frozen=True)
class Unit:
    """One circuit and where it stands: it computes ``channel`` at ``positions`` (flat indices into the map)."""

    channel: int
    circuit: Circuit
    taps: tuple[tuple[int, int, int], ...]
    """(input operand, input channel, flat tap number) in the order of the circuit's words."""
    widths: tuple[int, ...]
    positions: NDArray[np.int64]
    signed: bool


@dataclass(frozen=True)
class LayerAudit:
    """Exact counts of one operation."""

    name: str
    kind: str
    units: int
    gates: int
    ands: int
    and_depth: int
    """AND gates on the longest path from the network's input to this operation's output."""
    gate_depth: int
    own_and_depth: int
    """The deepest of this operation's circuits alone."""


@dataclass(frozen=True)
class Audit(Shown):
    """Exact gate counts and depths of a whole network."""

    accumulator: str
    layers: tuple[LayerAudit, ...]

    @property
    def gates(self) -> int:
        """Two-input gates of the network."""
        return sum(layer.gates for layer in self.layers)

    @property
    def and_depth(self) -> int:
        """AND gates on the longest path through the network."""
        return max((layer.and_depth for layer in self.layers), default=0)


class CircuitNet:
    """All circuits of an integer network.

    Args:
        graph: the network.
        accumulator: how sums are built; see :mod:`~layerscope.methods.encrypted.circuits.accumulators`.
    """

    def __init__(self, graph: Graph, accumulator: Accumulator = "csa") -> None:
        self.graph, self.accumulator = graph, accumulator
        self.units: list[list[Unit]] = [
            [] if isinstance(op, Input | Concat | Flatten) else list(self._units(op)) for op in graph.ops
        ]

    def run(self, codes: Ints) -> Ints:
        """Codes [N, C, H, W] -> answers [N, C, H, W], bit for bit those of the reference.

        Raises:
            EncryptedError: a value outside the range its circuit was built for, where a carry would be lost.
        """
        values: list[Ints] = []
        for index, op in enumerate(self.graph.ops):
            inputs = [values[i] for i in op.inputs]
            if isinstance(op, Input):
                out = np.asarray(codes, np.int64)
            elif isinstance(op, Concat):
                out = np.concatenate(inputs, 1)
            elif isinstance(op, Flatten):
                out = inputs[0].reshape(len(inputs[0]), -1, 1, 1)
            else:
                out = self._evaluate(op, self.units[index], inputs)
            self._in_range(op, self.graph.values[index], out)
            values.append(out)
        return values[-1]

    def audit(self) -> Audit:
        """Gates and depths of every operation; depths follow every bit through the whole network."""
        rows = []
        depths: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
        for index, op in enumerate(self.graph.ops):
            for ands_only, history in depths.items():
                history.append(self._arrivals(index, op, history, ands_only))
            units = self.units[index]
            rows.append(
                LayerAudit(
                    op.name,
                    op.kind,
                    int(np.prod(op.shape)),
                    sum(u.circuit.gates * len(u.positions) for u in units),
                    sum(u.circuit.ands * len(u.positions) for u in units),
                    int(depths[True][-1].max()),
                    int(depths[False][-1].max()),
                    max((u.circuit.and_depth for u in units), default=0),
                )
            )
        return Audit(self.accumulator, tuple(rows))

    def _in_range(self, op: Op, value: Value, out: Ints) -> None:
        lo, hi = value.lo.reshape(-1, 1, 1), value.hi.reshape(-1, 1, 1)
        if out.size and not ((out >= lo) & (out <= hi)).all():
            raise EncryptedError(
                f"{op.name}: a value outside [{int(lo.min())}, {int(hi.max())}] would carry out of its word; "
                "check the codes with encode() before running the circuit"
            )

    def _evaluate(self, op: Op, units: list[Unit], inputs: list[Ints]) -> Ints:
        samples = len(inputs[0])
        out = np.zeros((samples, op.shape[0], op.shape[1] * op.shape[2]), np.int64)
        gathered = [_taps(op, x) for x in inputs]
        for unit in units:
            lanes = samples * len(unit.positions)
            rows = [gathered[k][:, c, t][:, unit.positions].reshape(lanes) for k, c, t in unit.taps]
            planes = [pack_rows(r[None], w)[0] for r, w in zip(rows, unit.widths, strict=True)]
            words = np.concatenate(planes) if planes else np.zeros((0, -(-lanes // 64)), np.uint64)
            bits = evaluate(unit.circuit, words)
            out[:, unit.channel, unit.positions] = unpack(bits, lanes, signed=unit.signed).reshape(samples, -1)
        return out.reshape(samples, *op.shape)

    def _arrivals(self, index: int, op: Op, history: list[NDArray[np.int64]], ands_only: bool) -> NDArray[np.int64]:
        """Depth of every output bit [bits, C, H, W]."""
        bits = max(self.graph.values[index].width, 1)
        inputs = [history[i] for i in op.inputs]
        if isinstance(op, Input):
            return np.zeros((bits, *op.shape), np.int64)
        if isinstance(op, Concat):
            deep = max(x.shape[0] for x in inputs)
            return np.concatenate([_deeper(x, deep) for x in inputs], 1)
        if isinstance(op, Flatten):
            return inputs[0].reshape(inputs[0].shape[0], -1, 1, 1)
        # a requantiser always has all its wires, also where its codes need fewer
        bits = max(bits, max((len(unit.circuit.outputs) for unit in self.units[index]), default=0))
        out = np.zeros((bits, op.shape[0], op.shape[1] * op.shape[2]), np.int64)
        gathered = [_taps(op, _deeper(x, 64)) for x in inputs]
        for unit in self.units[index]:
            rows = [
                gathered[k][:w, c, t][:, unit.positions] for (k, c, t), w in zip(unit.taps, unit.widths, strict=True)
            ]
            arrivals = np.concatenate(rows) if rows else np.zeros((0, len(unit.positions)), np.int64)
            depth = unit.circuit.depths(arrivals, ands_only=ands_only)
            out[: len(depth), unit.channel, unit.positions] = depth
        return out.reshape(bits, *op.shape)

    def _units(self, op: Op) -> Iterator[Unit]:
        value = self.graph.values[op.inputs[0]]
        lo, hi = value.lo, value.hi
        everywhere = np.arange(op.shape[1] * op.shape[2])
        match op:
            case Conv():
                yield from self._conv_units(op, lo, hi)
            case SumPool():
                for channel in range(op.shape[0]):
                    tap = Tap(1, int(lo[channel]), int(hi[channel]))
                    for mask, positions in _borders(op.window, self.graph.ops[op.inputs[0]].shape):
                        circuit = neuron([tap] * len(mask), 0, self.accumulator)
                        names = tuple((0, channel, int(t)) for t in mask)
                        yield Unit(channel, circuit, names, (tap.width,) * len(mask), positions, tap.lo < 0)
            case MaxPool():
                for channel in range(op.shape[0]):
                    width, signed = width_of(int(lo[channel]), int(hi[channel])), int(lo[channel]) < 0
                    for mask, positions in _borders(op.window, self.graph.ops[op.inputs[0]].shape):
                        b = Builder()
                        words = [b.word(width) for _ in mask]
                        circuit = b.build(maximum_tree(b, words, signed=signed))
                        names = tuple((0, channel, int(t)) for t in mask)
                        yield Unit(channel, circuit, names, (width,) * len(mask), positions, signed)
            case Requant() | Sign():
                yield from self._pointwise(op, lo, hi, everywhere)
            case Add():
                other = self.graph.values[op.inputs[1]]
                for channel in range(op.shape[0]):
                    shifts = int(op.left[channel]), int(op.right[channel])
                    ends = ((int(lo[channel]), int(hi[channel])), (int(other.lo[channel]), int(other.hi[channel])))
                    taps = [Tap(1 << s, a, z) for s, (a, z) in zip(shifts, ends, strict=True)]
                    circuit = neuron(taps, 0, self.accumulator)
                    signed = sum(t.value(t.lo) for t in taps) < 0
                    names = ((0, channel, 0), (1, channel, 0))
                    yield Unit(channel, circuit, names, tuple(t.width for t in taps), everywhere, signed)

    def _pointwise(self, op: Requant | Sign, lo: Ints, hi: Ints, everywhere: NDArray[np.int64]) -> Iterator[Unit]:
        made: dict[tuple[int, bool, int], Circuit] = {}
        for channel in range(op.shape[0]):
            width, signed = width_of(int(lo[channel]), int(hi[channel])), int(lo[channel]) < 0
            shift = int(op.shift[channel]) if isinstance(op, Requant) else 0
            key = (width, signed, shift)
            if key not in made:
                b = Builder()
                word = b.word(width)
                if isinstance(op, Requant):
                    made[key] = b.build(requantize(b, word, shift, op.bits, signed=signed))
                else:
                    made[key] = b.build([sign(word, signed=signed)])
            yield Unit(channel, made[key], ((0, channel, 0),), (width,), everywhere, False)

    def _conv_units(self, op: Conv, lo: Ints, hi: Ints) -> Iterator[Unit]:
        outputs, per_group = op.q.shape[:2]
        lost = truncation(op).reshape(-1) if op.truncating else np.zeros(outputs, np.int64)
        borders = list(_borders(op.window, self.graph.ops[op.inputs[0]].shape))
        bias = np.broadcast_to(op.bias, op.shape).reshape(outputs, -1)
        for channel in range(outputs):
            first = channel // (outputs // op.groups) * per_group
            q = op.q[channel].reshape(per_group, -1)
            for mask, positions in borders:
                taps, names = [], []
                for c in range(per_group):
                    for t in mask:
                        if q[c, t]:
                            source = first + c
                            taps.append(Tap(int(q[c, t]), int(lo[source]), int(hi[source]), int(lost[channel])))
                            names.append((0, source, int(t)))
                for b, where in _by_bias(bias[channel], positions):
                    circuit = neuron(taps, b, self.accumulator)
                    low = b + sum(min(t.value(t.lo), t.value(t.hi)) for t in taps)
                    yield Unit(channel, circuit, tuple(names), tuple(t.width for t in taps), where, low < 0)


def _by_bias(bias: Ints, positions: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for b in np.unique(bias[positions]):
        yield int(b), positions[bias[positions] == b]


def _deeper(x: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Depths padded to ``bits`` planes; a missing high bit is the constant 0 or a copy of the sign: as the last one."""
    return x if x.shape[0] >= bits else np.concatenate([x, np.repeat(x[-1:], bits - x.shape[0], 0)])


def _geometry(op: Op) -> Window:
    return op.window if isinstance(op, Conv | MaxPool | SumPool) else Window((1, 1))


def _taps(op: Op, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N, C, taps, positions]: what each tap of each output position reads; zeros beyond the border."""
    w = _geometry(op)
    padded = np.pad(x, ((0, 0), (0, 0), (w.padding[0],) * 2, (w.padding[1],) * 2))
    height, width = op.shape[1:]
    planes = []
    for i in range(w.kernel[0]):
        for j in range(w.kernel[1]):
            a, b = i * w.dilation[0], j * w.dilation[1]
            part = padded[:, :, a : a + w.stride[0] * (height - 1) + 1 : w.stride[0]]
            planes.append(part[:, :, :, b : b + w.stride[1] * (width - 1) + 1 : w.stride[1]])
    return np.stack(planes, 2).reshape(x.shape[0], x.shape[1], w.taps, height * width)


def _borders(window: Window, in_shape: tuple[int, int, int]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(taps inside the map, output positions) for every distinct way in which the border cuts a window."""
    inside: list[NDArray[np.bool_]] = []
    for axis in (0, 1):
        size, out = in_shape[1 + axis], window.out(*in_shape[1:])[axis]
        place = np.arange(out)[:, None] * window.stride[axis] - window.padding[axis]
        place = place + np.arange(window.kernel[axis]) * window.dilation[axis]
        inside.append((place >= 0) & (place < size))
    valid = (inside[0][:, None, :, None] & inside[1][None, :, None, :]).reshape(-1, window.taps)
    patterns, which = np.unique(valid, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        yield np.flatnonzero(pattern), np.flatnonzero(which.reshape(-1) == k)
