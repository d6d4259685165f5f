"""The passes of ``mixture_kernel`` on a CPU as compiled kernels: when they are taken, and how they are called.

They serve float32 where a C++ compiler is found, up to 16 components; a library for each number of components is
compiled when it is first needed, in seconds. Everything else takes the blocks of torch operations, with the same
results up to rounding. ``LAYERSCOPE_NATIVE=0`` in the environment turns the kernels off.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.compiled import Isa, Library, Unit, best, say
from layerscope.errors import BuildError

#: Most components that the kernels take.
MOST_COMPONENTS = 16

_View = ctypes.c_int64 * 6


def library(k: int) -> Library:
    """The kernels for ``k`` components."""
    return Library(
        name=f"mixture{k}",
        what=f"the mixture norm's kernels for k={k}",
        sources=Path(__file__).parent / "native",
        units=(Unit("mixture.cpp", isa=True, torch=True),),
        seconds=3,
        flags=(f"-DCOMPONENTS={k}",),
    )


class Kernels:
    """The loaded kernels for one number of components.

    x, outputs and gradients are [B, C, S], as :func:`usable` demands, the outputs with the strides of x. Tables are (K,
    any) in float32, tau is contiguous [B, K, S].
    """

    def __init__(self, k: int, isa: Isa) -> None:
        try:
            self._library = ctypes.CDLL(str(library(k).build(isa).path))
        except OSError as error:
            raise BuildError(f"the compiled kernels do not load: {error}") from None
        self.k = k

    def collect(self, x: Tensor, table: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Tau, and the sums (K, 2C + 1) of tau z, tau z^2 and tau; z = x - centre. The table maps (z, z^2, 1)."""
        tau = x.new_empty(x.shape[0], self.k, x.shape[2])
        sums = x.new_empty(self.k, 2 * x.shape[1] + 1)
        table, centre = table.contiguous(), centre.contiguous()
        self._library.mixture_collect(_view(x), *_at(x, table, centre, tau, sums))
        return tau, sums

    def collect_back(self, x: Tensor, grad: Tensor, centre: Tensor, tau: Tensor) -> Tensor:
        """The sums (K, 2C + 1) of tau g, tau g z and tau."""
        sums, centre = x.new_empty(self.k, 2 * x.shape[1] + 1), centre.contiguous()
        at, *others = _at(x, grad, centre, tau, sums)
        self._library.mixture_collect_back(_view(x), at, _view(grad), *others)
        return sums

    def normalize(self, x: Tensor, out: Tensor, tau: Tensor, slope: Tensor, constant: Tensor) -> None:
        """Out = x (tau slope) + tau constant."""
        slope, constant = slope.contiguous(), constant.contiguous()
        self._library.mixture_normalize(_view(x), *_at(x, out, tau, slope, constant))

    def evaluate(self, x: Tensor, out: Tensor, table: Tensor, centre: Tensor, slope: Tensor, constant: Tensor) -> None:
        """The same with the posteriors of ``table``, which are not kept."""
        tables = [t.contiguous() for t in (table, centre, slope, constant)]
        self._library.mixture_evaluate(_view(x), *_at(x, out, *tables))

    def gradient(
        self, x: Tensor, grad: Tensor, out: Tensor, tau: Tensor, slope: Tensor, constant: Tensor, own: Tensor
    ) -> None:
        """Out = x (tau slope) + tau constant + g (tau own)."""
        tables = [t.contiguous() for t in (slope, constant, own)]
        at, *others = _at(x, grad, out, tau, *tables)
        self._library.mixture_gradient(_view(x), at, _view(grad), *others)


def _view(x: Tensor) -> Any:
    return _View(*x.shape, *x.stride())


def _at(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def usable(x: Tensor, k: int) -> bool:
    """Whether the kernels could take [B, C, S]: real memory in float32, with adjacent positions or channels."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and k <= MOST_COMPONENTS
        and x.numel() > 0
        and 1 in x.stride()[1:]
        and type(x) in (Tensor, nn.Parameter)
        and not x.is_neg()
        and not x._is_zerotensor()
        and not torch._C._len_torch_dispatch_stack()  # a mode, such as that of fake tensors, must see what is done
        and os.environ.get("LAYERSCOPE_NATIVE", "1") != "0"
    )


def kernels(x: Tensor, k: int) -> Kernels | None:
    """The kernels for [B, C, S] and ``k`` components, if there are any; compiled now if they never were."""
    return _kernels(k) if usable(x, k) else None


@cache
def _kernels(k: int) -> Kernels | None:
    found = best(lambda isa: Kernels(k, isa))
    if isinstance(found, BuildError):
        _say_once(str(found))
        return None
    return found


@cache
def _say_once(why: str) -> None:
    say(f"mixture norms run on plain PyTorch, slower but with the same results: {why}")
