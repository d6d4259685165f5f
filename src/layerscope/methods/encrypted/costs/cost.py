"""``cost``: the explainable budget of encrypted inference for any convolutional network."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from torch import nn

from layerscope.methods.encrypted.circuits.accumulators import ACCUMULATORS, Accumulator
from layerscope.methods.encrypted.circuits.neuron import neuron
from layerscope.methods.encrypted.costs.draft import Opaque, draft
from layerscope.methods.encrypted.costs.pricing import kinds_of, live_values, price, spread
from layerscope.methods.encrypted.costs.records import CostReport, LayerCost, LeveledNote
from layerscope.methods.encrypted.costs.timings import Timing, timing
from layerscope.methods.encrypted.errors import QuantizationError
from layerscope.methods.encrypted.floatgraph import FloatGraph
from layerscope.methods.encrypted.graph import Conv, Graph
from layerscope.methods.encrypted.leveled import Parameters, analyse
from layerscope.methods.encrypted.lowering import Settings
from layerscope.methods.encrypted.network import QuantizedNet
from layerscope.methods.encrypted.trace import trace

#: Operations that only rename values: not worth a row.
_FREE = ("input", "flatten", "concat")


def cost(
    model: nn.Module | FloatGraph | QuantizedNet,
    in_shape: Sequence[int] | None = None,
    *,
    bits: int = 4,
    act_bits: int = 4,
    lookup_bits: int = 6,
    accumulators: Sequence[Accumulator] = ACCUMULATORS,
    samples: int = 32,
    gate: str | Timing = "tfhe-2017",
    lookup: str | Timing = "concrete-2.11",
    label: str = "",
) -> CostReport:
    """What encrypted inference of ``model`` will cost per layer, before any key exists; needs no engine.

    Args:
        model: any network in evaluation mode, or its steps (quantised as they stand, without data), or a quantised
            one, whose real ranges and shifts are then used. What has no integer form becomes a row with a reason and no
            price.
        in_shape: (channels, height, width); needed for a float network, not for its steps.
        bits: weight code; ignored for a quantised network, like the next two.
        act_bits: activation code.
        lookup_bits: bits that may reach a lookup; sets the shifts.
        accumulators: which to count. ``csa`` is closed form for every neuron, the others are built for a sample.
        samples: neurons to build in each layer, fewer where they are large.
        gate: seconds of a gate: a preset's name or a probed :class:`Timing`.
        lookup: seconds of lookups, likewise.
        label: name of the network in the report.

    Raises:
        QuantizationError: a float network without ``in_shape``, or settings out of range.
        UnsupportedModuleError: a network that cannot be traced at all.
    """
    start = time.perf_counter()
    for name in accumulators:
        if name not in ACCUMULATORS:
            raise QuantizationError(f"no accumulator {name!r}: known are {', '.join(ACCUMULATORS)}")
    gates = timing(gate) if isinstance(gate, str) else gate
    lookups = timing(lookup) if isinstance(lookup, str) else lookup
    notes: list[str] = []
    if isinstance(model, QuantizedNet):
        graph, settings = model.graph, model.settings
        source = label or (model.source.source if model.source else "quantised network")
    else:
        settings = Settings(bits=bits, act_bits=act_bits, lookup_bits=lookup_bits)
        traced = model if isinstance(model, FloatGraph) else _traced(model, in_shape)
        graph, source = draft(traced, settings), label or traced.source
        notes.append("no calibration data: shifts leave the lookups their bits, residual sums align to the wider side")
    layers = tuple(
        price(graph, i, accumulators, samples, gates, lookups) for i, op in enumerate(graph.ops) if op.kind not in _FREE
    )
    return CostReport(
        source=source,
        in_shape=graph.input.shape,
        bits=settings.bits,
        act_bits=settings.act_bits,
        accumulators=tuple(accumulators),
        layers=layers,
        gate_timing=f"{gates.name}: {gates.source}",
        lookup_timing=f"{lookups.name}: {lookups.source}",
        leveled=_leveled(graph),
        input_bytes=_input_bytes(graph, gates),
        peak_values=live_values(graph),
        key_bytes=lookups.key_bytes,
        failure_per_bootstrap=_failure(layers),
        notes=(*notes, *_notes(graph, layers)),
        seconds=time.perf_counter() - start,
    )


def _traced(model: nn.Module, in_shape: Sequence[int] | None) -> FloatGraph:
    if in_shape is None:
        raise QuantizationError("the cost of a float network needs in_shape=(channels, height, width)")
    return trace(model, in_shape)


def _leveled(graph: Graph) -> LeveledNote | None:
    """The first layer's widest neuron: if even that cannot be evaluated leveled, nothing behind it can."""
    for op in graph.ops:
        if isinstance(op, Conv):
            budget = max(0, Parameters().nesting_budget())
            widest = max(kinds_of(op, graph), key=lambda row: sum(row.values()))
            found = analyse(neuron(spread(widest), 0, "csa"), budget)
            return LeveledNote(op.name, found.first_infeasible_gate, found.first_infeasible_depth, budget)
    return None


def _input_bytes(graph: Graph, gates: Timing) -> int | None:
    if gates.ciphertext_bytes is None:
        return None
    return math.prod(graph.input.shape) * graph.input.bits * gates.ciphertext_bytes


def _failure(layers: Sequence[LayerCost]) -> float | None:
    total = sum(layer.bootstraps for layer in layers)
    return 2.0**-17 / total if total else None


def _notes(graph: Graph, layers: Sequence[LayerCost]) -> list[str]:
    notes = []
    missing = [op for op in graph.ops if isinstance(op, Opaque)]
    if missing:
        names = ", ".join(op.name for op in missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(f"{len(missing)} operations cannot be evaluated and are left out of the totals: {names}")
    wide = [layer.name for layer in layers if layer.lookup_bits is not None and layer.lookup_bits > 6]
    if wide:
        notes.append(f"lookups wider than 6 bits, which the concrete backend refuses: {', '.join(wide[:3])}")
    return notes
