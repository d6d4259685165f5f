"""Everything a probing run could change in a network or its process, saved before and put back after.

Saved: parameters and buffers (values and identity), what modules keep as attributes (a counter, a running estimate, a
list of past losses), ``training`` flags, ``requires_grad``, ``.grad``, and the states of the random number
generators of Python, NumPy (if loaded), the CPU and, for a network on CUDA, of all CUDA devices. A tensor whose values
did not change is not written to, so that an autograd graph the caller still holds stays valid.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layerscope._attributes import Attributes, put_back
from layerscope.probe.network import Network

#: Tensors of at most this many entries are kept side by side in one buffer per dtype and device: saving and comparing
#: them is then one operation, not one for each of the hundreds of small tensors of a network.
_SMALL = 1 << 16


@contextmanager
def unchanged(network: Network) -> Iterator[None]:
    """Restore ``network`` and all random generators on leaving, also after an exception."""
    generators = Generators(network)
    attributes = Attributes(m for _, m in network.modules if not isinstance(m, torch.jit.ScriptModule))
    flags = [(module, module.training) for _, module in network.modules]
    values = _Values(
        [*network.parameters, *(b for _, m in network.modules for b in m._buffers.values() if b is not None)]
    )
    grads = [(p, p.grad, p.requires_grad) for p in network.parameters if p.is_leaf]
    try:
        yield
    finally:
        attributes.restore()
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            values.restore()
            for parameter, grad, requires_grad in grads:
                if parameter.grad is not grad:
                    parameter.grad = grad
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
        generators.restore()


class _Values:
    """Copies of what is in some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Parameters apart from buffers: they seldom change, and are then done with one comparison.
        packed: dict[tuple[bool, torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        self._alone: list[tuple[Tensor, Tensor]] = []
        for tensor in {id(t): t for t in tensors}.values():
            if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() <= _SMALL and _is_line(tensor):
                packed[isinstance(tensor, nn.Parameter), tensor.dtype, tensor.device].append(tensor)
            else:
                self._alone.append((tensor, tensor.detach().clone()))
        self._packed = [_Packed(group) for group in packed.values()]

    def restore(self) -> None:
        """Write back what changed."""
        for group in self._packed:
            group.restore()
        for tensor, copy in self._alone:
            put_back(tensor, copy)


class _Packed:
    """Copies of small tensors of one dtype and device, side by side."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        # flat looks at the same memory: as long as a tensor keeps its place, they show what is in it now
        self._now = [t.detach().view(-1) for t in tensors]
        self._places = [(t.data_ptr(), t.shape) for t in tensors]
        self._buffer = torch.cat(self._now)

    def restore(self) -> None:
        """Write back what changed."""
        intact = all(
            t.data_ptr() == place and t.shape == shape and t.is_contiguous()
            for t, (place, shape) in zip(self._tensors, self._places, strict=True)
        )
        if intact and torch.equal(torch.cat(self._now), self._buffer):
            return
        copies = torch.split(self._buffer, [shape.numel() for _, shape in self._places])
        for tensor, (_, shape), copy in zip(self._tensors, self._places, copies, strict=True):
            put_back(tensor, copy.view(shape))


def _is_line(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_contiguous()


class Generators:
    """The states of all random generators a forward pass could draw from."""

    def __init__(self, network: Network) -> None:
        self.python = random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy = None if numpy is None else (numpy.random, numpy.random.get_state())
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if network.has_cuda else []

    def moved(self) -> bool:
        """Whether one of torch's generators has been drawn from since."""
        now = torch.cuda.get_rng_state_all() if self.cuda else []
        states = zip([self.cpu, *self.cuda], [torch.get_rng_state(), *now], strict=True)
        return not all(torch.equal(a, b) for a, b in states)

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self.python)
        if self.numpy is not None:
            self.numpy[0].set_state(self.numpy[1])
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
