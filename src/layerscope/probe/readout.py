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
from layerscope.probe.outputs import version


@dataclass(frozen=True)
class Head:
    """One call of a linear layer, or of a 1 x 1 convolution."""

    path: str
    given: Tensor
    """[N, ..., D] or [N, D, H, W] its input."""
    version: int
    output: weakref.ref[Tensor]
    position: int
    """How many call sites had been recorded when it ran."""
    is_row: bool
    """It returned one row per sample, [N, K] or [N, K, 1, 1]."""
    is_linear: bool

    @property
    def features(self) -> Tensor:
        """[N, D]: what the classifier is given of every sample, at all positions where it classifies each."""
        return self.given.flatten(1)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


class Readout:
    """Context manager that remembers the inputs of the last few linear layers.

    The classifier is the one whose result is the network's own output, be it one row per sample, per token or per
    pixel. Where none is, it is the last linear layer that returned one row per sample; a 1 x 1 convolution of a pooled
    map does not count then, because squeeze-and-excitation gates look the same.

    It holds references, no copies: autograd keeps these tensors alive anyway.
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
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and output.ndim > 1:
                given, ref = args[0].detach(), weakref.ref(output)
                is_row = output.ndim == 2 or output.shape[2:] == (1, 1)
                linear = isinstance(module, nn.Linear)
                self.heads.append(Head(path, given, version(given), ref, self._position(), is_row, linear))

        return on_forward

    def classifier(self, output: Tensor, samples: int) -> Head | None:
        """The linear layer whose result is ``output``, else the last one; None where none ran on ``samples`` rows."""
        known = [h for h in self.heads if len(h.given) == samples and version(h.given) == h.version]
        direct = [h for h in known if (made := h.output()) is not None and made.data_ptr() == output.data_ptr()]
        found = direct or [h for h in known if h.is_row and h.is_linear]
        return found[-1] if found else None
