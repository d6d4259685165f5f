"""From a traced network and a cut to steps: the stem on full rows, the cut, the region on active rows, the head.

Every node becomes a step on rows if :mod:`ops` recognises it and its inputs are rows; otherwise it runs as the original
module on a dense map, and its rows are made dense first. BatchNorm, layer scale, activations and residual sums are
folded into the convolution before them, where nothing else reads the value in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.graph import Cut, Traced
from layerscope.methods.focus.levels import Level
from layerscope.methods.focus.ops import (
    Act,
    Add,
    Affine,
    Concat,
    Conv,
    GlobalMean,
    Kind,
    Norm,
    Order,
    Pad,
    Part,
    Permute,
    Pool,
    Same,
    ScaleBy,
    SizeOf,
    Slice,
    Times,
    Unsupported,
)
from layerscope.methods.focus.recognise import recognise


@dataclass(eq=False)
class Step:
    """One operation of the plan.

    ``kind`` is an operation on rows, or None: the original node on dense values. ``residual`` is added before the
    activation. ``inside`` tells whether the step runs on active rows (after the cut) or on the full grid (before it).
    """

    node: fx.Node
    kind: Kind | None
    inputs: tuple[fx.Node, ...]
    inside: bool
    residual: fx.Node | None = None
    activation: str = "none"
    name: str = ""

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """Everything this step needs."""
        if self.kind is None:
            return tuple(self.node.all_input_nodes)
        extra = tuple(n for n in self.node.all_input_nodes if isinstance(self.kind, ScaleBy) and n not in self.inputs)
        return self.inputs + extra + ((self.residual,) if self.residual is not None else ())


@dataclass(eq=False)
class Plan:
    """The steps in order, and what was learned on the way."""

    traced: Traced
    cut: Cut
    steps: list[Step]
    output: fx.Node
    channels_last: dict[fx.Node, bool]
    """Nodes held as rows -> whether the original value has its channels on the last axis."""
    alias: dict[fx.Node, fx.Node]
    """Nodes that are another node's rows unchanged (dropout, permute)."""
    unsupported: tuple[str, ...]
    """Operations after the cut that ended the region, with the reason."""
    notes: tuple[str, ...] = field(default=())

    @property
    def convolutions(self) -> int:
        """Convolutions and channel-wise linear layers in the region."""
        return sum(isinstance(s.kind, Conv) and s.inside for s in self.steps)

    def resolve(self, node: fx.Node) -> fx.Node:
        """The node whose rows ``node`` is."""
        while node in self.alias:
            node = self.alias[node]
        return node


def make_plan(traced: Traced, cut: Cut, *, stem_on_rows: bool = True) -> Plan:
    """Plan the network around ``cut``.

    Args:
        traced: the network.
        cut: where the active set is chosen.
        stem_on_rows: whether what comes before the cut runs on (full) rows too, which saves changing the layout at the
            cut; worth it where the row kernels are as fast as the dense ones.

    Raises:
        FocusError: the region after the cut holds no convolution.
    """
    plan = Plan(traced, cut, [], next(n for n in traced.module.graph.nodes if n.op == "output"), {}, {}, ())
    _recognise_all(plan, stem_on_rows)
    if not plan.convolutions:
        why = "; ".join(plan.unsupported[:3]) or "nothing follows"
        raise FocusError(f"cut: no convolution can run on rows after {cut.name!r} ({why})")
    _fuse(plan)
    return plan


def _recognise_all(plan: Plan, stem_on_rows: bool) -> None:
    context = plan.traced.context
    rows = replace(context, channels_last=plan.channels_last)
    levels: dict[fx.Node, Level] = {}
    seen_cut, unsupported, notes = False, list[str](), list[str]()
    for node in plan.traced.module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        name = str(node.target) if node.op == "call_module" else node.name
        if len(plan.traced.context.shapes.get(node, ())) == 4 or any(
            n in plan.channels_last for n in node.all_input_nodes
        ):
            try:
                if not seen_cut and not stem_on_rows:
                    raise Unsupported("before the cut")
                op = recognise(node, rows)
                _admit(op.kind, op.rows, plan, seen_cut)
                if seen_cut:
                    levels[node] = _level(op.kind, [levels[n] for n in op.rows])
            except Unsupported as reason:
                if seen_cut and any(n in plan.channels_last for n in node.all_input_nodes):
                    unsupported.append(f"{name}: {reason}")
                plan.steps.append(Step(node, None, (), seen_cut, name=name))
            else:
                notes += op.notes if seen_cut else ()
                _take(op.kind, op.rows, node, plan, seen_cut, name)
        else:
            plan.steps.append(Step(node, None, (), seen_cut, name=name))
        if node is plan.cut.node:
            seen_cut = True
            # from here on the cut's value is rows, whatever computed it
            plan.channels_last[node] = False
            generator = torch.Generator().manual_seed(0)
            levels[node] = Level(torch.rand(1, *plan.cut.grid, generator=generator) < 0.2)
    plan.unsupported, plan.notes = tuple(unsupported), tuple(notes)


def _admit(kind: Kind, inputs: tuple[fx.Node, ...], plan: Plan, inside: bool) -> None:
    """Rows come from rows; before the cut a convolution may also start from a dense map."""
    dense = [n for n in inputs if n not in plan.channels_last]
    if dense and (inside or not isinstance(kind, Conv)):
        raise Unsupported("its input is dense")


def _level(kind: Kind, inputs: list[Level]) -> Level:
    """The level of the result, for a random set on the example's grid; refuses operands on different sets."""
    if any(other is not inputs[0] for other in inputs[1:]):
        raise Unsupported("its operands have different active sets")
    return inputs[0].through(kind.geometry) if isinstance(kind, Conv | Pool) else inputs[0]


def _take(kind: Kind, inputs: tuple[fx.Node, ...], node: fx.Node, plan: Plan, inside: bool, name: str) -> None:
    source = inputs[0]
    last = plan.channels_last.get(source, False)
    if isinstance(kind, Same | Pad | Permute | Part) and node is not plan.cut.node:
        plan.alias[node] = source
    else:
        plan.steps.append(Step(node, kind, tuple(plan.resolve(n) for n in inputs), inside, name=name))
    if not isinstance(kind, GlobalMean | SizeOf):
        plan.channels_last[node] = kind.to_last if isinstance(kind, Permute) else last


def _fuse(plan: Plan) -> None:
    """Merge each affine, activation and sum into the step that makes its input, where nothing else reads that."""
    readers: dict[fx.Node, int] = {}
    for step in plan.steps:
        for node in step.reads:
            readers[plan.resolve(node)] = readers.get(plan.resolve(node), 0) + 1
    for node in plan.output.all_input_nodes:
        readers[plan.resolve(node)] = readers.get(plan.resolve(node), 0) + 1
    made: dict[fx.Node, Step] = {}
    kept: list[Step] = []
    place: dict[fx.Node, int] = {}
    for step in plan.steps:
        before = made.get(step.inputs[0]) if step.inputs else None
        can = before is not None and readers[before.node] == 1 and before.node is not plan.cut.node
        merged = can and before is not None and _merge(step, before)
        if not merged and isinstance(step.kind, Add):
            for own, other in (step.inputs, step.inputs[::-1]):
                before = made.get(own)
                if before is None or readers[own] != 1 or own is other or own is plan.cut.node:
                    continue
                known = place.get(other, -1 if other not in made else len(kept))
                fits = isinstance(before.kind, Conv) and before.residual is None and before.activation == "none"
                if fits and before.inside == step.inside and known < place[own]:
                    before.residual, merged = other, True
                    break
        if merged and before is not None:
            old = before.node
            before.node = step.node
            made[step.node], place[step.node] = before, place[old]
            continue
        kept.append(step)
        made[step.node], place[step.node] = step, len(kept) - 1
    plan.steps = kept


def _merge(step: Step, before: Step) -> bool:
    if before.inside != step.inside:
        return False
    if before.activation != "none":
        return False
    if isinstance(step.kind, Affine) and isinstance(before.kind, Conv) and before.residual is None:
        before.kind = before.kind.then_affine(step.kind.scale, step.kind.shift)
        return True
    if isinstance(step.kind, Act) and step.kind.kind is not None and isinstance(before.kind, Conv | Add | Affine):
        before.activation = step.kind.kind
        return True
    return False


def zero_fills(plan: Plan) -> dict[fx.Node, Tensor]:
    """The fill of every value after the cut when the region starts from zeros.

    Convolutions and linear layers leave zeros at inactive positions, after their BatchNorm (what a dense network
    would hold there is never computed); whatever works on each position alone carries its input's fill along, so
    LayerNorm's is its bias.
    """
    fills: dict[fx.Node, Tensor] = {plan.cut.node: torch.zeros(plan.cut.channels)}
    for step in plan.steps:
        if not step.inside or step.kind is None or isinstance(step.kind, GlobalMean | SizeOf):
            continue
        fill = _through(step.kind, [fills[n] for n in step.inputs])
        if step.residual is not None:
            fill = fill + fills[step.residual]
        fills[step.node] = ACTIVATIONS[step.activation](fill)
    return fills


def _through(kind: Kind, fills: list[Tensor]) -> Tensor:
    first = fills[0]
    match kind:
        case Conv():
            return torch.zeros(kind.weight.shape[0])
        case Affine():
            return first * kind.scale + kind.shift
        case Act():
            return kind.function(first)
        case Norm():
            return F.layer_norm(first, first.shape, kind.weight, kind.bias, kind.eps)
        case Add():
            return fills[0] + fills[1]
        case Times():
            return fills[0] * fills[1]
        case Slice():
            return first[kind.start : kind.stop]
        case Order():
            return first[kind.order]
        case Concat():
            return torch.cat(fills)
        case ScaleBy():  # one scale per image: a fill that is not zero could not stay one row
            return torch.zeros_like(first)
        case _:
            return first


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}
"""The activations that can be fused into the step before them."""
