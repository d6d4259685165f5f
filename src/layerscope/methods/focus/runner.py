"""Run a plan: the stem over the whole grid, the region over active rows, the head on dense values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from layerscope.methods.focus.backend import Backend, RowOp
from layerscope.methods.focus.levels import Geometry, Level, scatter
from layerscope.methods.focus.ops import (
    Act,
    Add,
    Affine,
    Concat,
    Conv,
    GlobalMean,
    Norm,
    Order,
    Pool,
    ScaleBy,
    SizeOf,
    Slice,
    Times,
)
from layerscope.methods.focus.plan import ACTIVATIONS, Plan, Step
from layerscope.methods.focus.rows_compiled import CompiledBackend, pack
from layerscope.methods.focus.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Rows:
    """Compact values: one row per active position of ``level``."""

    data: Tensor
    level: Level


Value = Rows | Tensor
#: Runs one step: (the step, every value so far, the step's place) -> its value.
Operation = Callable[[Step, dict[fx.Node, Value], int], Value]


class Runner:
    """A plan bound to a backend and to fills.

    Args:
        plan: the steps.
        backend: what runs operations on rows.
        fills: the fill [C] of each value after the cut.
    """

    def __init__(self, plan: Plan, backend: Backend, fills: dict[fx.Node, Tensor]) -> None:
        self.plan, self.backend, self.fills = plan, backend, fills
        self._workspace = Workspace(backend.memory)
        self._lock = threading.Lock()
        self._full: dict[tuple[int, int, int], Level] = {}
        self._operations = [self._prepare(step) for step in plan.steps]
        self._inputs = [n for n in plan.traced.module.graph.nodes if n.op == "placeholder"]
        self._stem = [i for i, step in enumerate(plan.steps) if not step.inside]
        self._tail = [i for i, step in enumerate(plan.steps) if step.inside]
        self._last = self._last_uses()
        self._gone = [
            tuple({n for n in map(plan.resolve, step.reads) if self._last[n] <= i}) for i, step in enumerate(plan.steps)
        ]
        before = {plan.steps[i].node for i in self._stem} & plan.traced.context.plain.keys()
        self._plain = {n for i in self._tail for n in plan.steps[i].reads if n in before}
        self.observe: Callable[[Step, Value], None] | None = None
        """Called with each step after the cut and its value, while values are still there; for measuring and tests."""

    @torch.no_grad()
    def stem(self, x: Tensor) -> Value:
        """The value at the cut for the whole grid: full rows, or a dense map [N, C, H, W]. Lent until the next pass."""
        self._workspace.clear()
        env: dict[fx.Node, Value] = {self._inputs[0]: x}
        if self._stem:
            self._run(self._stem, env)
        self._workspace.plain = {n: v for n, v in env.items() if n in self._plain}
        return env[self.plan.resolve(self.plan.cut.node)]

    def maps(self, value: Value) -> tuple[Tensor, tuple[int, int, int]]:
        """The value at the cut as [N * H * W, C] rows, and (N, H, W)."""
        if isinstance(value, Rows):
            images, height, width = value.level.mask.shape
            return value.data, (images, height, width)
        images, channels, height, width = value.shape
        return value.movedim(1, -1).reshape(-1, channels), (images, height, width)

    def part(self, value: Value, index: Tensor, x: Tensor) -> Value:
        """The value at the cut for the images at ``index`` alone; ``x`` is what :meth:`stem` was given."""
        if self._plain:  # sizes that the stem took of the whole batch would be wrong
            return self.stem(x[index])
        rows, grid = self.maps(value)
        return rows.view(*grid, -1)[index].movedim(-1, 1)

    @torch.no_grad()
    def tail(self, value: Value, mask: Tensor, level: Level | None = None) -> Any:
        """From the cut to the network's output, computing only where ``mask`` [N, H, W] is True."""
        level = level or self.level(mask)
        rows, _ = self.maps(value)
        picked = self._workspace.take(level.n, rows.shape[1])
        torch.index_select(rows, 0, level.position, out=picked)
        if isinstance(value, Rows):
            self._workspace.give(value.data)
        env: dict[fx.Node, Value] = {**self._workspace.plain}
        env[self.plan.resolve(self.plan.cut.node)] = Rows(picked, level)
        self._run(self._tail, env)
        result = fx.map_arg(self.plan.output.args[0], lambda n: self._dense(n, env))
        self._workspace.clear()
        return result

    def level(self, mask: Tensor) -> Level:
        """A level whose tables this runner's backend builds."""
        return Level(mask, self.backend.tables)

    # -----------------------------------------------------------------------------------------------------------------

    def _last_uses(self) -> dict[fx.Node, int]:
        last: dict[fx.Node, int] = {}
        for i, step in enumerate(self.plan.steps):
            for node in step.reads:
                last[self.plan.resolve(node)] = i
        for node in self.plan.output.all_input_nodes:
            last[self.plan.resolve(node)] = len(self.plan.steps)
        last[self.plan.resolve(self.plan.cut.node)] = max(
            last.get(self.plan.resolve(self.plan.cut.node), 0), (self._stem or [-1])[-1] + 1
        )
        return last

    def _run(self, which: list[int], env: dict[fx.Node, Value]) -> None:
        for i in which:
            step = self.plan.steps[i]
            value = env[step.node] = self._operations[i](step, env, i)
            if self.observe is not None and step.inside:
                self.observe(step, value)
            for source in self._gone[i]:
                gone = env.pop(source, None)
                # an operation may have written over its last input, or passed it on
                if isinstance(gone, Rows) and not (isinstance(value, Rows) and value.data is gone.data):
                    self._workspace.give(gone.data)

    def _full_level(self, images: int, height: int, width: int) -> Level:
        key = (images, height, width)
        with self._lock:
            if key not in self._full:
                while len(self._full) >= 4:
                    self._full.pop(next(iter(self._full)))
                self._full[key] = self.level(torch.ones(key, dtype=torch.bool))
            return self._full[key]

    def _dense(self, node: fx.Node, env: dict[fx.Node, Value]) -> Any:
        if node in self.plan.traced.context.constants:
            return self.plan.traced.context.constants[node]
        value = env[self.plan.resolve(node)]
        if not isinstance(value, Rows):
            return value
        fill = self.fills.get(self.plan.resolve(node))
        dense = scatter(value.data, value.level, fill)
        return dense.movedim(1, -1) if self.plan.channels_last.get(node, False) else dense

    def _fill(self, node: fx.Node, inside: bool) -> Tensor | None:
        fill = self.fills.get(node) if inside else None
        return None if fill is None or not bool(fill.any()) else fill.contiguous()

    def _prepare(self, step: Step) -> Operation:
        kind = step.kind
        fill = self._fill(step.inputs[0], step.inside) if step.inputs else None
        match kind:
            case None:
                module = self.plan.traced.context.modules.get(str(step.node.target))
                if type(module) is nn.Linear and isinstance(self.backend, CompiledBackend) and not step.node.kwargs:
                    return self._linear(module, self.backend)
                return self._original
            case Conv():
                return self._convolution(kind, step, fill)
            case Affine():
                return self._on_rows(self.backend.conv(kind.as_conv(), step.activation, None), None)
            case Pool():
                return self._on_rows(self.backend.pool(kind, fill), kind.geometry)
            case Norm():
                return self._on_rows(self.backend.norm(kind), None)
            case Add():
                return self._sum(self.backend.add(step.activation))
            case Act():
                return _elementwise(kind)
            case GlobalMean():
                return self._mean(kind, step)
            case Concat():
                return _concat
            case Times():
                return _product
            case Slice():
                return self._pick(lambda x: x[:, kind.start : kind.stop])
            case Order():
                return self._pick(lambda x: x[:, kind.order])
            case SizeOf():
                return self._size(kind)
            case ScaleBy():
                return self._scale(kind)
            case _:
                return lambda step, env, i: env[step.inputs[0]]

    def _original(self, step: Step, env: dict[fx.Node, Value], i: int) -> Value:
        node = step.node
        args = fx.map_arg(node.args, lambda n: self._dense(n, env))
        kwargs = fx.map_arg(node.kwargs, lambda n: self._dense(n, env))
        if node.op == "call_module":
            return self.plan.traced.context.modules[str(node.target)](*args, **kwargs)  # type: ignore[no-any-return]
            # a module may return anything
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)  # type: ignore[no-any-return]  # as above
        assert callable(node.target)
        return node.target(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    def _linear(self, module: nn.Linear, backend: CompiledBackend) -> Operation:
        """A fully connected layer of the head. Few samples only stream its weights, which the packed copy on large
        pages does about twice as fast; many samples go to the matrix product.
        """
        bias = torch.zeros(module.out_features) if module.bias is None else module.bias.detach()
        run_rows = backend.conv(Conv(module.weight.detach()[:, :, None, None], bias, Geometry((1, 1))), "none", None)
        nowhere = self.level(torch.zeros(1, 1, 1, dtype=torch.bool))

        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            x = self._dense(step.node.args[0], env)  # type: ignore[arg-type]  # a node: Linear takes one tensor
            if x.ndim != 2 or x.shape[0] > 16:
                return module(x)  # type: ignore[no-any-return]  # a module may return anything
            out = torch.empty(x.shape[0], module.out_features)
            run_rows(x.contiguous(), nowhere, None, out)
            return out

        return run

    def _on_rows(self, operation: RowOp, geometry: Geometry | None, channels: int | None = None) -> Operation:
        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            x = env[step.inputs[0]]
            assert isinstance(x, Rows)
            level = x.level if geometry is None else x.level.through(geometry)
            residual = None
            out: Tensor | None = None
            if step.residual is not None:
                other = env[step.residual]
                assert isinstance(other, Rows)
                assert other.level.agrees(level)
                residual = other.data
                if self._last[step.residual] <= i and step.residual not in step.inputs:
                    out = residual  # its last reader: write the sum over it
            if out is None:
                out = self._workspace.take(level.n, channels or x.data.shape[1])
            operation(x.data, x.level, residual, out)
            return Rows(out, level)

        return run

    def _convolution(self, kind: Conv, step: Step, fill: Tensor | None) -> Operation:
        on_rows = self._on_rows(
            self.backend.conv(kind, step.activation, fill), kind.geometry, channels=kind.weight.shape[0]
        )
        from_rows = step.inside or step.inputs[0] in self.plan.channels_last
        if from_rows:
            return on_rows
        wide = self._wide_entry(kind, step)

        def enter(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            x = env[step.inputs[0]]
            assert isinstance(x, Tensor)
            if wide is not None:
                return wide(x)
            level = self._full_level(x.shape[0], x.shape[2], x.shape[3])
            rows = Rows(x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous(), level)
            return on_rows(step, {**env, step.inputs[0]: rows}, i)

        return enter

    def _wide_entry(self, kind: Conv, step: Step) -> Callable[[Tensor], Rows] | None:
        """A first layer on few channels: padded in memory, the taps of one kernel row lie side by side and become one
        tap with kw * C channels; 3 channels per tap would leave the kernel mostly fetching row addresses.
        """
        g = kind.geometry
        if not isinstance(self.backend, CompiledBackend) or kind.groups > 1 or g.dilation != (1, 1) or step.residual:
            return None
        (kh, kw), c = g.kernel, kind.weight.shape[1]
        if kw == 1 or c > 16:
            return None
        merged = Conv(
            kind.weight.permute(0, 3, 1, 2).reshape(-1, kw * c, kh, 1), kind.bias, Geometry((kh, 1), g.stride)
        )
        packed = self.backend.arena.keep(pack(merged.weight, 1, self.backend.library.panel))
        tables: dict[tuple[int, ...], Tensor] = {}
        backend = self.backend

        def table(images: int, height: int, width: int, out: Level) -> Tensor:
            key = (images, height, width)
            if key not in tables:
                tables.clear()
                _, out_h, out_w = out.mask.shape
                n = torch.arange(images)[:, None, None, None] * height
                y = torch.arange(out_h)[:, None, None] * g.stride[0] + torch.arange(kh)
                x = torch.arange(out_w)[:, None] * g.stride[1]
                tables[key] = ((n + y) * width + x).reshape(-1, kh).int().contiguous()
            return tables[key]

        def run(x: Tensor) -> Rows:
            images, _, height, width = x.shape
            here = g.at(height, width)
            level = self._full_level(images, height, width).through(here)
            (ph, pw), (eh, ew) = here.padding, here.extra
            padded = F.pad(x, (pw, pw + ew + kw, ph, ph + eh)).movedim(1, -1).contiguous()
            index = table(images, height + 2 * ph + eh, width + 2 * pw + ew + kw, level)
            out = self._workspace.take(level.n, merged.weight.shape[0])
            backend.conv_table(packed, merged, step.activation, padded, index, out)
            return Rows(out, level)

        return run

    def _sum(self, operation: RowOp) -> Operation:
        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            a, b = (env[n] for n in step.inputs)
            assert isinstance(a, Rows)
            assert isinstance(b, Rows)
            assert a.level.agrees(b.level)
            out = self._workspace.take(*a.data.shape)
            operation(a.data, a.level, b.data, out)
            return Rows(out, a.level)

        return run

    def _mean(self, kind: GlobalMean, step: Step) -> Operation:
        fill = self._fill(step.inputs[0], step.inside)

        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            x = env[step.inputs[0]]
            assert isinstance(x, Rows)
            mean = _maximum(x, fill) if kind.maximum else self.backend.mean(x.data, x.level, fill)
            return mean[:, :, None, None] if kind.keepdim else mean

        return run

    def _pick(self, pick: Callable[[Tensor], Tensor]) -> Operation:
        """Some of the channels, copied: kernels read rows that lie side by side."""

        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            x = env[step.inputs[0]]
            assert isinstance(x, Rows)
            picked = pick(x.data)
            out = self._workspace.take(*picked.shape)
            return Rows(out.copy_(picked), x.level)

        return run

    def _size(self, kind: SizeOf) -> Operation:
        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Any:
            x = env[step.inputs[0]]
            assert isinstance(x, Rows)
            images, height, width = x.level.mask.shape
            last = self.plan.channels_last.get(step.node.all_input_nodes[0], False)
            channels = x.data.shape[1]
            size = torch.Size((images, height, width, channels) if last else (images, channels, height, width))
            return size if kind.axis is None else size[kind.axis]

        return run

    def _scale(self, kind: ScaleBy) -> Operation:
        def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
            x, source = env[step.inputs[0]], step.node.args[kind.vector]
            assert isinstance(x, Rows)
            assert isinstance(source, fx.Node)
            vector = self._dense(source, env)
            out = self._workspace.take(*x.data.shape)
            scales = vector.flatten(1).expand(x.level.images, -1)
            start = 0
            for image, count in enumerate(x.level.counts.tolist()):
                torch.mul(x.data[start : start + count], scales[image], out=out[start : start + count])
                start += count
            return Rows(out, x.level)

        return run


def _maximum(x: Rows, fill: Tensor | None) -> Tensor:
    channels, cells = x.data.shape[1], x.level.mask.shape[1] * x.level.mask.shape[2]
    absent = torch.zeros(channels) if fill is None else fill
    found = []
    for part in torch.split(x.data, x.level.counts.tolist()):
        best = part.amax(0) if len(part) else absent
        found.append(torch.maximum(best, absent) if len(part) < cells else best)
    return torch.stack(found)


def _elementwise(kind: Act) -> Operation:
    def run(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
        x = env[step.inputs[0]]
        assert isinstance(x, Rows)
        function = ACTIVATIONS[kind.kind] if kind.kind else kind.function
        return Rows(function(x.data), x.level)

    return run


def _product(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
    a, b = (env[n] for n in step.inputs)
    assert isinstance(a, Rows)
    assert isinstance(b, Rows)
    assert a.level.agrees(b.level)
    return Rows(a.data * b.data, a.level)


def _concat(step: Step, env: dict[fx.Node, Value], i: int) -> Value:
    parts = [env[n] for n in step.inputs]
    first = parts[0]
    assert isinstance(first, Rows)
    data = []
    for part in parts:
        assert isinstance(part, Rows)
        assert part.level.agrees(first.level)
        data.append(part.data)
    return Rows(torch.cat(data, 1), first.level)
