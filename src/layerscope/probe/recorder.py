"""The recorder: hooks that reduce every watched output and its gradient at once, and keep only the small results."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from layerscope.norms.batch import BatchNorm
from layerscope.probe.layouts import AxisMemory, samples_first, view
from layerscope.probe.outputs import first_tensor, version
from layerscope.probe.plans import Plan, Planner
from layerscope.probe.points import Point
from layerscope.probe.records import FEWEST_BLOCKS, Level, Role
from layerscope.probe.reducers import Reduced, Reducer, square_norm
from layerscope.probe.residual import Walk, is_sum_of_paths


@dataclass(slots=True)
class Trace:
    """One call site as recorded: where, and what is kept of it."""

    name: str
    kind: str
    role: Role
    block: str | None
    shape: tuple[int, ...]
    module: nn.Module | None
    kept: Reduced
    plan: Plan
    """What was reduced."""
    grad: list[Tensor]
    """Empty, or one 0-d tensor, the squared norm; shared by call sites that return the same tensor."""
    residual: bool = False
    """The output is a sum of two paths."""
    is_watched: bool = False
    """The gradient will come."""
    is_inner: bool = False
    """Unless it stands in a block of a residual stream, whose gradient is enough."""
    is_block: bool = False
    """These values were handed on by a block."""


class Recorder:
    """Context manager that watches ``points``; between :meth:`start` and :meth:`stop` every call is recorded.

    With ``only``, a second look: just these call sites, in float64.

    The gradient is taken by a hook on the node that made the output: unlike a module's backward hook it works beside
    in-place operations and gets the gradient of the value that was recorded.
    """

    def __init__(
        self, points: Sequence[Point], level: Level, device_type: str, only: frozenset[str] | None = None
    ) -> None:
        self.device_type, self.only = device_type, only
        self.plan = Planner(level, (p.role for p in points if not p.is_candidate))
        self.points = [p for p in points if self.plan(p.role, p.block is not None)]
        self.traces: list[Trace] = []
        self.left_out: dict[str, str] = {}
        """Why call sites were left out -> the first of them."""
        self.busy = False
        self.hidden: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._reduce = Reducer()
        self._watching = False
        self._to_watch: list[tuple[Trace, Any, int]] = []

    def __enter__(self) -> Recorder:
        self._handles = [(p.watched or p.module).register_forward_hook(self._hook(p)) for p in self.points]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for handle in self._handles:
            handle.remove()

    def start(self, samples: int) -> None:
        """Begin a new forward pass over ``samples`` samples."""
        self.samples = samples
        self.traces = []
        self._calls: Counter[str] = Counter()
        self._axes = AxisMemory()
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, Trace]] = {}
        self._to_watch = []
        self._walk = Walk()
        self._watching = True

    def stop(self) -> None:
        """End the forward pass: recomputation during the backward pass must not be recorded again."""
        self._watching = False
        self._seen, self._walk = {}, Walk()
        stream = self._stream() if any(t.is_inner for t, _, _ in self._to_watch) else ()
        for trace, node, index in self._to_watch:
            if not trace.is_inner or trace.block not in stream:
                _on_gradient(node, index, trace.grad)
        self._to_watch = []

    def _stream(self) -> set[str | None]:
        """The innermost residual blocks, where there are enough of them to carry the signal."""
        blocks = [t for t in self.traces if t.residual]
        innermost = {t.name.partition("#")[0] for t in blocks} - {t.block for t in blocks}
        return {*innermost} if len(innermost) >= FEWEST_BLOCKS else set()

    def _hook(self, point: Point) -> Callable[[nn.Module, Any, Any], None]:
        module = point.module

        def on_forward(watched: nn.Module, args: Any, output: Any) -> None:
            if self._watching:
                out = first_tensor(output)
                if out is not None and is_functorch_wrapped_tensor(out):
                    self.hidden.add(point.path)  # it has no values of its own that could be read
                    return
                known = None if out is None else self._known(out)
                if point.is_candidate and known is not None and known.is_block:
                    return  # a stage that hands on its last block's output is no block of its own
                residual = point.role == "block" and out is not None and is_sum_of_paths(out, self._walk)
                if residual or not point.is_candidate:
                    source = args[0] if args and _is_plain_batch_norm(module) else None
                    self.record(point.path, point.kind, point.role, point.block, module, out, source, residual)

        return on_forward

    def record(
        self,
        path: str,
        kind: str,
        role: Role,
        block: str | None,
        module: nn.Module | None,
        out: Tensor | None,
        source: Tensor | None = None,
        residual: bool = False,
    ) -> None:
        """Reduce ``out`` now.

        Identities and views of a tensor that was already read are not recorded again; blocks are, by reference.

        Args:
            path: call site without its count.
            kind: class or function name.
            role: decides what is measured.
            block: the block around it.
            module: None for a function.
            out: what was returned.
            source: the input, if the output's moments follow from it.
            residual: the output is a sum of two paths.
        """
        todo = self.plan(role, block is not None)
        if todo is None or out is None or not out.is_floating_point():
            if out is not None and out.is_complex():
                self.left_out.setdefault("returned complex numbers, which are not measured", path)
            return
        if is_functorch_wrapped_tensor(out):  # a function seen inside a transform
            return
        known = self._known(out)
        if known is not None and role != "block":
            return
        found = samples_first(out, self.samples, self._axes.channels_are_last(module, out))
        if found is None:
            return
        rows, last = found
        self._calls[path] += 1
        name = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        if known is not None:
            known.is_block = True
            if self.only is None and not known.plan.covers(todo):
                # A norm that ends a block (post-norm): more is asked of the block than of the norm.
                known.kept, known.plan = self._read(rows, last, todo, None), todo
            self.traces.append(
                Trace(name, kind, role, block, known.shape, module, known.kept, known.plan, known.grad, residual)
            )
            self._watch_gradient(known, out, todo)
            return
        if self.only is None:
            before = None if source is None else self._derivable(module, source, todo, last)
            if before is None or todo.gram_samples:
                kept = self._read(rows, last, todo, before)
            else:
                kept = Reduced(before.layout, before.samples, before.positions, normalizes=before)
        elif name in self.only:
            kept = self._read(rows.double(), last, todo, None)
        else:  # remembered, so that call sites keep their names
            kept = Reduced("other", len(rows), 1)
        trace = Trace(name, kind, role, block, tuple(rows.shape), module, kept, todo, [], residual)
        trace.is_block = role == "block"
        self._watch_gradient(trace, out, todo)
        self.traces.append(trace)
        self._seen[out.data_ptr()] = (weakref.ref(out), version(out), trace)

    def _watch_gradient(self, trace: Trace, out: Tensor, todo: Plan) -> None:
        if not todo.gradient or not out.requires_grad:
            return
        if trace.is_watched:
            trace.is_inner = trace.is_inner and not todo.inner_gradient
            return
        trace.is_watched, trace.is_inner = True, not todo.inner_gradient
        node = out.grad_fn
        if node is not None:  # the hook is set at the end of the forward pass, when the blocks are known
            self._to_watch.append((trace, node, out.output_nr))
        else:  # a leaf, such as an input handed through
            out.register_hook(lambda g: trace.grad.append(square_norm(g)))  # type: ignore[no-untyped-call]  # not annotated

    def _read(self, rows: Tensor, channels_last: bool, todo: Plan, source: Reduced | None) -> Reduced:
        self.busy = True
        try:
            seen = view(rows[: todo.samples] if len(rows) > todo.samples else rows, channels_last)
            if torch.is_autocast_enabled(self.device_type):
                with torch.autocast(self.device_type, enabled=False):
                    return self._reduce(seen, todo, source)
            return self._reduce(seen, todo, source)
        finally:
            self.busy = False

    def _derivable(self, module: nn.Module | None, source: Tensor, todo: Plan, last: bool) -> Reduced | None:
        """What is kept of a plain batch norm's input, if the moments of its output may be taken from there."""
        if module is None or not todo.moments_may_be_derived or len(module._forward_hooks) > 1:
            return None
        known = self._known(source)
        if known is None or known.kept.tables is None:
            return None
        # the two must mean the same axis by channels: batch norm takes the second one of what a linear layer returned
        return known.kept if source.ndim == 2 or last == (known.kept.layout == "token") else None

    def _known(self, out: Tensor) -> Trace | None:
        """The trace of the same living values, if they were read before."""
        entry = self._seen.get(out.data_ptr())
        if entry is None:
            return None
        ref, written, trace = entry
        tensor = ref()
        if tensor is None or version(tensor) != written or version(out) != written or tensor.numel() != out.numel():
            return None
        return trace


def _is_plain_batch_norm(module: nn.Module) -> bool:
    """Whether ``module`` computes what torch's batch norm does on the statistics of the batch, and nothing else."""
    kind = type(module)
    return issubclass(kind, _BatchNorm) and (kind is BatchNorm or kind.forward is _BatchNorm.forward)


def _on_gradient(node: Any, index: int, into: list[Tensor]) -> None:
    """Reduce the gradient of output ``index`` of ``node`` when it is known: before the node runs backward."""

    def before(grads: Any) -> None:
        if grads[index] is not None:
            into.append(square_norm(grads[index]))

    node.register_prehook(before)
