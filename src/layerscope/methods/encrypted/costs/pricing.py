"""Gates, depths, bootstraps and seconds of each operation of an integer network."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerscope.methods.encrypted.circuits.accumulators import Accumulator
from layerscope.methods.encrypted.circuits.closed_form import csa_depth, csa_gates
from layerscope.methods.encrypted.circuits.neuron import Tap, tree_costs
from layerscope.methods.encrypted.costs.draft import Opaque
from layerscope.methods.encrypted.costs.records import LayerCost
from layerscope.methods.encrypted.costs.timings import Timing
from layerscope.methods.encrypted.graph import (
    Add,
    Conv,
    Graph,
    MaxPool,
    Requant,
    Sign,
    SumPool,
    Value,
    Window,
    width_of,
)
from layerscope.methods.encrypted.ranges import truncation

#: Gates that sampling may build for one layer and accumulator: keeps a ResNet-18 within seconds.
_BUDGET = 10_000


@dataclass(frozen=True)
class Sums:
    """Counts of a layer's adders."""

    gates: dict[Accumulator, int]
    sampled: int
    and_depth: int


def price(
    graph: Graph,
    index: int,
    accumulators: Sequence[Accumulator],
    samples: int,
    gate: Timing,
    lookup: Timing,
) -> LayerCost:
    """The cost of operation ``index``."""
    op, value = graph.ops[index], graph.values[index]
    units = math.prod(op.shape)
    weights = adds = bootstraps = depth = sampled = 0
    gates = dict.fromkeys(accumulators, 0)
    shift: tuple[int, int] | None = None
    lookup_bits: int | None = None
    seconds: float | None = 0.0
    eq1: float | None = None
    before = graph.values[op.inputs[0]] if op.inputs else value
    area = op.shape[1] * op.shape[2]
    if isinstance(op, Opaque):
        return LayerCost(
            op.name, op.label, units, 0, 0, value.width, None, (), 0, 0, 0, None, None, None, None, op.reason
        )
    if isinstance(op, Conv | SumPool | Add):
        rows = kinds_of(op, graph)
        share = _inside(op, graph)
        weights = round(sum(sum(row.values()) for row in rows) * area * share)
        adds = max(weights - units, 0)
        sums = _sums(rows, _biases(op, len(rows)), accumulators, samples, index)
        gates = {k: round(v * area * share) for k, v in sums.gates.items()}
        sampled, depth = sums.sampled, sums.and_depth
        if isinstance(op, Conv):
            eq1 = paper_eq1(op.q.shape[1], op.window.kernel[0], value.width)
    elif isinstance(op, Requant):
        shift = (int(op.shift.min()), int(op.shift.max()))
        one, depth = _requant(op, before)
        gates = dict.fromkeys(accumulators, one * area)
        bootstraps = int((op.shift + 1).sum()) * area
        lookup_bits, seconds = _requant_seconds(op, before, area, lookup)
    elif isinstance(op, MaxPool):
        comparisons = op.window.taps - 1
        widths = [width_of(lo, hi) for lo, hi in zip(before.lo.tolist(), before.hi.tolist(), strict=True)]
        gates = dict.fromkeys(accumulators, sum(6 * w - 2 for w in widths) * comparisons * area)
        depth = math.ceil(math.log2(op.window.taps)) * (max(widths) + 1) if comparisons else 0
        bootstraps = comparisons * units
        if comparisons:
            lookup_bits = 1 + width_of(0, int(before.hi.max()) - int(before.lo.min()))
            one_lookup = lookup.lookup_seconds(lookup_bits)
            seconds = None if one_lookup is None else bootstraps * one_lookup
    elif isinstance(op, Sign):
        lost = max(0, before.width - 2)
        bootstraps, lookup_bits = (lost + 1) * units, min(2, before.width)
        parts = lookup.bit_seconds(before.width), lookup.lookup_seconds(2)
        seconds = None if parts[0] is None or parts[1] is None else units * (lost * parts[0] + parts[1])
    chosen = gates.get("csa", next(iter(gates.values()), 0))
    return LayerCost(
        op.name,
        op.kind,
        units,
        weights,
        adds,
        value.width,
        shift,
        tuple(gates.items()),
        sampled,
        depth,
        bootstraps,
        lookup_bits,
        None if gate.gate is None else chosen * gate.gate,
        seconds,
        eq1,
    )


def kinds_of(op: Conv | SumPool | Add, graph: Graph) -> list[dict[Tap, int]]:
    """How often each kind of nonzero tap occurs in every output channel, away from borders."""
    before = graph.values[op.inputs[0]]
    if isinstance(op, SumPool):
        return [{Tap(1, int(lo), int(hi)): op.window.taps} for lo, hi in zip(before.lo, before.hi, strict=True)]
    if isinstance(op, Add):
        return [dict(Counter(_pair(op, before, graph.values[op.inputs[1]], c))) for c in range(op.shape[0])]
    outputs, per_group = op.q.shape[:2]
    boxes, box_of = np.unique(np.stack([before.lo, before.hi], 1), axis=0, return_inverse=True)
    group = np.arange(outputs) // (outputs // op.groups)
    channel = group[:, None] * per_group + np.arange(per_group)
    _, power = np.frexp(op.q.astype(np.float32).reshape(outputs, per_group, -1))  # 0 for zero, e + 1 for 2^e
    codes = 2 * (int(power.max(initial=0)) + 1)
    key = box_of.reshape(-1)[channel][:, :, None] * codes + 2 * power + (op.q < 0).reshape(power.shape)
    total = len(boxes) * codes
    lost = truncation(op).reshape(-1) if op.truncating else np.zeros(outputs, np.int64)
    rows = []
    for o in range(outputs):
        counts = np.bincount(key[o].ravel(), minlength=total)
        row: dict[Tap, int] = {}
        for k in np.flatnonzero(counts).tolist():
            code, (lo, hi) = k % codes, boxes[k // codes].tolist()
            if code >= 2:
                weight = (-1 if code % 2 else 1) << (code // 2 - 1)
                row[Tap(weight, lo, hi, int(lost[o]))] = int(counts[k])
        rows.append(row)
    return rows


def _pair(op: Add, x: Value, y: Value, channel: int) -> list[Tap]:
    return [
        Tap(1 << int(op.left[channel]), int(x.lo[channel]), int(x.hi[channel])),
        Tap(1 << int(op.right[channel]), int(y.lo[channel]), int(y.hi[channel])),
    ]


def spread(kinds: dict[Tap, int], seed: int = 0) -> list[Tap]:
    """A neuron with these taps, in a random order: the order of channels means nothing to a sum."""
    taps = [tap for tap, n in kinds.items() for _ in range(n)]
    random.Random(seed).shuffle(taps)
    return taps


def _inside(op: Conv | SumPool | Add, graph: Graph) -> float:
    """Share of taps that do not hang over a zero-padded border."""
    if isinstance(op, Add):
        return 1.0
    shares = []
    for axis in (0, 1):
        size = graph.ops[op.inputs[0]].shape[1 + axis]
        w: Window = op.window
        place = np.arange(op.shape[1 + axis])[:, None] * w.stride[axis] - w.padding[axis]
        place = place + np.arange(w.kernel[axis]) * w.dilation[axis]
        shares.append(float(((place >= 0) & (place < size)).mean()))
    return shares[0] * shares[1]


def _biases(op: Conv | SumPool | Add, channels: int) -> list[int]:
    """Each channel's constant, away from borders."""
    if not isinstance(op, Conv):
        return [0] * channels
    centre: list[int] = op.bias[:, op.bias.shape[1] // 2, op.bias.shape[2] // 2].tolist()
    return centre


def _sums(
    rows: list[dict[Tap, int]], biases: list[int], accumulators: Sequence[Accumulator], samples: int, seed: int
) -> Sums:
    sizes = [sum(row.values()) for row in rows]
    biggest = max(sizes, default=0)
    budget = max(1, min(samples, _BUDGET // max(1, 30 * biggest)))
    picked = range(len(rows)) if len(rows) <= budget else random.Random(seed).sample(range(len(rows)), budget)
    chosen = [(spread(rows[i], i), biases[i]) for i in picked]
    total = sum(max(n - 1, 0) for n in sizes)
    adds = sum(max(len(row) - 1, 0) for row, _ in chosen)
    trees = [kind for kind in accumulators if kind != "csa"]
    counted = [tree_costs(row, bias, trees) for row, bias in chosen] if trees else []
    gates: dict[Accumulator, int] = {}
    for kind in accumulators:
        if kind == "csa":
            gates[kind] = sum(csa_gates(row, bias) for row, bias in zip(rows, biases, strict=True))
        else:
            found = sum(counts[kind] for counts in counted)
            gates[kind] = round(found * total / adds) if adds else found
    widest = sizes.index(biggest) if biggest else 0
    return Sums(gates, len(counted), csa_depth(rows[widest], biases[widest]) if biggest else 0)


def _requant(op: Requant, before: Value) -> tuple[int, int]:
    """Gates of one position over all channels, and the AND-depth."""
    gates = depth = 0
    for lo, hi, r in zip(before.lo.tolist(), before.hi.tolist(), op.shift.tolist(), strict=True):
        width, signed = width_of(lo, hi), lo < 0
        kept = max(0, width - signed - r)
        dropped = max(0, kept - op.bits)
        gates += (kept if signed else 0) + (dropped - 1 + min(kept, op.bits) if dropped else 0)
        depth = max(depth, signed + (math.ceil(math.log2(dropped)) + 1 if dropped else 0))
    return gates, depth


def _requant_seconds(op: Requant, before: Value, area: int, lookup: Timing) -> tuple[int, float | None]:
    widest, total = 1, 0.0
    for lo, hi, r in zip(before.lo.tolist(), before.hi.tolist(), op.shift.tolist(), strict=True):
        bits = width_of(lo >> r, hi >> r)
        widest = max(widest, bits)
        bit, table = lookup.bit_seconds(width_of(lo, hi)), lookup.lookup_seconds(bits)
        if bit is None or table is None:
            return _widest(op, before), None
        total += r * bit + table
    return widest, total * area


def _widest(op: Requant, before: Value) -> int:
    ends = zip(before.lo >> op.shift, before.hi >> op.shift, strict=True)
    return max(width_of(int(lo), int(hi)) for lo, hi in ends)


def paper_eq1(channels: int, kernel: int, width: int) -> float:
    """Depth by the paper's equation 1 for a layer of shifts: IN log2(K^2) D_A, with D_A = 5 gates a bit.

    For comparison only. The paper's own table does not follow it: there D_A log2(fan-in) fits, without the factor IN.
    """
    return channels * math.log2(max(kernel * kernel, 2)) * 5 * width


def live_values(graph: Graph) -> int:
    """Most numbers alive at once in execution order."""
    last: dict[int, int] = {}
    for i, op in enumerate(graph.ops):
        for j in op.inputs:
            last[j] = i
    sizes = [math.prod(op.shape) for op in graph.ops]
    alive, peak = 0, 0
    for i, op in enumerate(graph.ops):
        alive += sizes[i]
        peak = max(peak, alive)
        alive -= sum(sizes[j] for j in set(op.inputs) if last[j] == i)
    return peak
