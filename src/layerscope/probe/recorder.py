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
from torch.utils.hooks import RemovableHandle

from layerscope.probe.layouts import AxisMemory, samples_first, view
from layerscope.probe.outputs import first_tensor
from layerscope.probe.points import Point
from layerscope.probe.records import Level, Role
from layerscope.probe.reducers import Reduced, Scratch, plan, reduce_forward, reduce_gradient
from layerscope.probe.residual import is_sum_of_paths


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
    grad: list[Tensor]
    """Empty, or one 0-d tensor; shared by call sites that return the same tensor."""
    residual: bool = False
    """The output is a sum of two paths."""


class Recorder:
    """Context manager that watches ``points``; between :meth:`start` and :meth:`stop` every call is recorded.

    The gradient is taken by a hook on the output tensor itself: unlike a module's backward hook it works beside
    in-place operations and gets the gradient of the value that was recorded.
    """

    def __init__(self, points: Sequence[Point], level: Level, device_type: str) -> None:
        self.points, self.level, self.device_type = points, level, device_type
        self.traces: list[Trace] = []
        self.busy = False
        self._handles: list[RemovableHandle] = []
        self._scratch = Scratch()
        self._watching = False

    def __enter__(self) -> Recorder:
        self._handles = [p.module.register_forward_hook(self._hook(p)) for p in self.points]
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
        self._watching = True

    def stop(self) -> None:
        """End the forward pass: recomputation during the backward pass must not be recorded again."""
        self._watching = False
        self._seen = {}

    def _hook(self, point: Point) -> Callable[[nn.Module, Any, Any], None]:
        def on_forward(module: nn.Module, args: Any, output: Any) -> None:
            if self._watching:
                out = first_tensor(output)
                residual = point.role == "block" and out is not None and is_sum_of_paths(out)
                if residual or not point.is_candidate:
                    self.record(point.path, point.kind, point.role, point.block, module, out, residual)

        return on_forward

    def record(
        self,
        path: str,
        kind: str,
        role: Role,
        block: str | None,
        module: nn.Module | None,
        out: Tensor | None,
        residual: bool = False,
    ) -> None:
        """Reduce ``out`` now. Identities and views of a tensor already read are not recorded again, blocks are."""
        if out is None or not out.is_floating_point():
            return
        known = self._known(out)
        if known is not None and role != "block":
            return
        rows = samples_first(out, self.samples)
        if rows is None:
            return
        self._calls[path] += 1
        name = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        if known is not None:
            self.traces.append(
                Trace(name, kind, role, block, tuple(rows.shape), module, known.kept, known.grad, residual)
            )
            return
        self.busy = True
        try:
            if torch.is_autocast_enabled(self.device_type):
                with torch.autocast(self.device_type, enabled=False):
                    kept = self._reduce(module, role, rows)
            else:
                kept = self._reduce(module, role, rows)
        finally:
            self.busy = False
        trace = Trace(name, kind, role, block, tuple(rows.shape), module, kept, [], residual)
        if out.requires_grad:
            grad = trace.grad
            out.register_hook(lambda g: grad.append(reduce_gradient(g)))  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.traces.append(trace)
        self._seen[out.data_ptr()] = (weakref.ref(out), out._version, trace)

    def _reduce(self, module: nn.Module | None, role: Role, rows: Tensor) -> Reduced:
        return reduce_forward(
            view(rows, self._axes.channels_are_last(module, rows)), plan(self.level, role), self._scratch
        )

    def _known(self, out: Tensor) -> Trace | None:
        """The trace of the same living values, if they were read before."""
        entry = self._seen.get(out.data_ptr())
        if entry is None:
            return None
        ref, version, trace = entry
        tensor = ref()
        same = tensor is not None and tensor.numel() == out.numel() and out._version == version
        return trace if same and tensor is not None and tensor._version == version else None
