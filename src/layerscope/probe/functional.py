"""Operations that are no modules (``F.relu``, ``+``, ``matmul``): seen through torch's function override."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from layerscope.probe.network import Network
from layerscope.probe.points import Point, role_of_function
from layerscope.probe.recorder import Recorder

_ALIASES = {"iadd": "add", "radd": "add", "isub": "sub", "rsub": "sub", "imul": "mul", "rmul": "mul"} | {
    "truediv": "div", "itruediv": "div", "rtruediv": "div", "rmatmul": "matmul", "concat": "cat",
}  # fmt: skip
#: Casts, copies and bookkeeping: nothing a network computes with.
_IGNORED = frozenset(
    "get set to float half bfloat16 double type contiguous clone detach copy requires_grad register_hook new_zeros "  # noqa: SIM905
    "new_ones new_empty zeros_like ones_like empty_like rand_like randn_like bernoulli".split()
)


class FunctionalOps(TorchFunctionMode):
    """Context manager that records torch functions called outside the watched leaf modules.

    A call is named ``<path of the module whose forward called it>.<function>``.
    """

    def __init__(self, network: Network, points: Sequence[Point], recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._stack: list[str] = []
        self._inside_leaf = 0
        self._leaves = {id(p.module) for p in points if p.is_leaf}
        self._blocks = {p.path for p in points if p.role == "block"}
        self._network = network
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FunctionalOps:
        for path, module in self._network.modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            self._handles.append(module.register_forward_pre_hook(self._push(path), prepend=True))
            self._handles.append(module.register_forward_hook(self._pop, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's mode is untyped
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # as above
        for handle in self._handles:
            handle.remove()

    def _push(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(path)
            self._inside_leaf += id(module) in self._leaves

        return enter

    def _pop(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()
        self._inside_leaf -= id(module) in self._leaves

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func`` and record what it returned."""
        out = func(*args, **(kwargs or {}))
        if self._recorder.busy or self._inside_leaf or not self._stack or not isinstance(out, Tensor):
            return out
        name = getattr(func, "__name__", "").strip("_")
        name = _ALIASES.get(name, name)
        if name in _IGNORED or (out._is_view() and not name.endswith("relu")):
            return out
        path = self._stack[-1]
        block = next((p for p in reversed(self._stack) if p in self._blocks), None)
        self._recorder.record(f"{path}.{name}" if path else name, name, role_of_function(name), block, None, out)
        return out
