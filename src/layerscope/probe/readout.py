"""The classifier input: what the last linear layer on the output path is given."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from layerscope.probe.network import Network


@dataclass(frozen=True)
class Head:
    """One call of a linear layer that returned [N, K]."""

    path: str
    features: Tensor
    """[N, D] its input."""
    version: int
    output: weakref.ref[Tensor]
    position: int
    """How many call sites had been recorded when it ran."""
    is_dense: bool = True
    """A linear layer, not a 1 x 1 convolution."""


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


class Readout:
    """Context manager that remembers the inputs of the last few linear layers with one output row per sample.

    A 1 x 1 convolution of a pooled map is one too, but squeeze-and-excitation gates look the same: it counts only where
    its result is the network's own output.

    It holds references, no copies: autograd keeps these small matrices alive anyway.
    """

    def __init__(self, network: Network, position: Callable[[], int] = lambda: 0) -> None:
        self._linears = [(path or network.name, m) for path, m in network.modules if _is_linear(m)]
        self._position = position
        self._handles: list[RemovableHandle] = []
        self.heads: deque[Head] = deque(maxlen=8)

    def __enter__(self) -> Readout:
        self._handles = [m.register_forward_hook(self._hook(path)) for path, m in self._linears]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.heads.clear()

    def start(self) -> None:
        """Forget the pass before."""
        self.heads.clear()

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def on_forward(module: nn.Module, args: Any, output: Any) -> None:
            rows = isinstance(output, Tensor) and (output.ndim == 2 or output.shape[2:] == (1, 1))
            if rows and args and isinstance(args[0], Tensor):
                features = args[0].detach().flatten(1)
                dense = isinstance(module, nn.Linear)
                head = Head(path, features, features._version, weakref.ref(output), self._position(), dense)
                self.heads.append(head)

        return on_forward

    def classifier(self, output: Tensor) -> Head | None:
        """The linear layer whose result is ``output``, else the last one; None where none ran on [N, D] features."""
        rows = [h for h in self.heads if len(h.features) == len(output) and h.features._version == h.version]
        direct = [h for h in rows if (made := h.output()) is not None and made.data_ptr() == output.data_ptr()]
        found = direct or [h for h in rows if h.is_dense]
        return found[-1] if found else None
