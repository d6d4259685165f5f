"""Everything a probing run could change in a network or its process, saved before and put back after.

Saved: parameters and buffers (values and identity), what modules keep as attributes (a counter, a running estimate, a
list of past losses), ``training`` flags, ``requires_grad``, ``.grad``, and the states of the random number
generators of Python, NumPy (if loaded), the CPU and, for a network on CUDA, of all CUDA devices. A tensor whose values
did not change is not written to, so that an autograd graph the caller still holds stays valid.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerscope._attributes import Attributes
from layerscope.probe.network import Network

_SCALARS = (bool, int, float, complex, str, bytes, type(None))


@contextmanager
def unchanged(network: Network) -> Iterator[None]:
    """Restore ``network`` and all random generators on leaving, also after an exception."""
    generators = Generators(network)
    attributes = Attributes(m for _, m in network.modules if not isinstance(m, torch.jit.ScriptModule))
    modules = [_Saved(module) for _, module in network.modules]
    grads = [(p, p.grad, p.requires_grad) for p in network.parameters if p.is_leaf]
    try:
        yield
    finally:
        attributes.restore()
        with torch.no_grad():
            for saved in modules:
                saved.restore()
            for parameter, grad, requires_grad in grads:
                if parameter.grad is not grad:
                    parameter.grad = grad
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
        generators.restore()


class _Saved:
    """One module's own state, without its children's."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tensors: list[tuple[dict[str, Any], str, Tensor | None, Tensor | None]] = [
            (table, name, tensor, None if tensor is None else tensor.detach().clone())
            for table in (cast("dict[str, Any]", module._parameters), cast("dict[str, Any]", module._buffers))
            for name, tensor in table.items()
        ]
        # Written through __dict__: an attribute may have a setter, and a module may override __setattr__.
        self.attributes: dict[str, Any] = {"training": module.training}
        self.names: frozenset[str] | None = None
        if type(module).__module__.startswith("torch.nn.modules"):  # their forward sets no attributes
            return
        self.names = frozenset(vars(module))
        for name, value in vars(module).items():
            if isinstance(value, _SCALARS):
                self.attributes[name] = value
            elif isinstance(value, Tensor):
                self.tensors.append((vars(module), name, value, value.detach().clone()))

    def restore(self) -> None:
        own = vars(self.module)
        if self.names is not None:
            for name in own.keys() - self.names:
                del own[name]
        own.update(self.attributes)
        for table, name, tensor, copy in self.tensors:
            table[name] = tensor
            if tensor is not None and copy is not None and not _same(tensor, copy):
                tensor.data = copy if tensor.shape != copy.shape else tensor.data.copy_(copy)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


class Generators:
    """The states of all random generators a forward pass could draw from."""

    def __init__(self, network: Network) -> None:
        self.python = random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy = None if numpy is None else (numpy.random, numpy.random.get_state())
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if network.has_cuda else []

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self.python)
        if self.numpy is not None:
            self.numpy[0].set_state(self.numpy[1])
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
