"""The compiled kernels behind ctypes: load once, one thin call per operation.

Tensors cross as addresses; ctypes releases the interpreter lock during a call. See ``native/rows.h`` for the fields.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from layerscope.compiled import ISAS, Isa, best
from layerscope.errors import BuildError
from layerscope.methods.focus.build import LIBRARY

ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "silu": 3, "gelu": 4, "hardswish": 5}

_P, _I = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, fields: str) -> Any:
    kinds = {"p": _P, "i": _I, "d": ctypes.c_double}
    pairs = [field.split(":") for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(n, kinds[k]) for n, k in pairs]})


ConvArgs = _struct(
    "ConvArgs",
    "x:p ldx:i table:p n:i taps:i c:i w:p oc:i groups:i bias:p residual:p ldr:i act:i y:p ldy:i fill:p zero:p "
    "runs:p n_runs:i kernel_w:i",
)
PoolArgs = _struct("PoolArgs", "x:p table:p n:i taps:i c:i mean:i count_padding:i y:p fill:p")
NormArgs = _struct("NormArgs", "x:p n:i c:i weight:p bias:p eps:d y:p")
EltArgs = _struct("EltArgs", "a:p b:p scale:p n:i c:i act:i y:p")
MeanArgs = _struct("MeanArgs", "x:p counts:p images:i c:i cells:i fill:p y:p")
RelevanceArgs = _struct("RelevanceArgs", "x:p n:i c:i quadratic:p linear:p constant:d y:p")
LevelArgs = _struct("LevelArgs", "mask:p images:i h:i w:i map:p position:p counts:p")
ShrinkArgs = _struct("ShrinkArgs", "mask:p images:i h:i w:i out_h:i out_w:i sh:i sw:i y0:i x0:i out:p")
TableArgs = _struct(
    "TableArgs",
    "map:p h:i w:i position:p n:i out_h:i out_w:i kh:i kw:i sh:i sw:i ph:i pw:i dh:i dw:i table:p",
)


class Native:
    """One instruction set of the loaded library."""

    def __init__(self, library: ctypes.CDLL, isa: Isa) -> None:
        library.focus_kernels.restype = _P
        library.focus_name.restype = ctypes.c_char_p
        library.focus_name.argtypes = [_P]
        library.focus_panel.restype = _I
        library.focus_panel.argtypes = [_P]
        handle = library.focus_kernels()
        if not handle:
            raise BuildError(f"this processor or compiler has no {isa}")
        self.isa: str = library.focus_name(handle).decode()
        self.panel: int = library.focus_panel(handle)
        self._library, self._handle = library, handle
        for name in ("conv", "depthwise", "pool", "layer_norm", "elementwise", "mean", "relevance"):
            function = getattr(library, f"focus_{name}")
            function.argtypes, function.restype = [_P, _P], None
        library.focus_large_pages.argtypes, library.focus_large_pages.restype = [_P, _I], None
        library.focus_level.argtypes, library.focus_level.restype = [_P], _I
        library.focus_table.argtypes, library.focus_table.restype = [_P], None
        library.focus_shrink.argtypes, library.focus_shrink.restype = [_P], None
        library.focus_runs.argtypes, library.focus_runs.restype = [_P, _I, _I, _P], _I

    def memory(self, floats: int) -> Tensor:
        """An uninitialised float32 vector on large pages, where the system grants them."""
        block = torch.empty(floats)
        self._library.focus_large_pages(block.data_ptr(), 4 * floats)
        return block

    def conv(self, args: Any) -> None:
        """Indirect convolution; see ConvArgs in ``native/rows.h``."""
        self._library.focus_conv(self._handle, ctypes.addressof(args))

    def depthwise(self, args: Any) -> None:
        """Depthwise convolution, over runs of adjacent outputs where given."""
        self._library.focus_depthwise(self._handle, ctypes.addressof(args))

    def pool(self, args: Any) -> None:
        """Maximum or mean over the taps."""
        self._library.focus_pool(self._handle, ctypes.addressof(args))

    def layer_norm(self, args: Any) -> None:
        """LayerNorm over the channels of each row."""
        self._library.focus_layer_norm(self._handle, ctypes.addressof(args))

    def elementwise(self, args: Any) -> None:
        """act(a * scale + b)."""
        self._library.focus_elementwise(self._handle, ctypes.addressof(args))

    def mean(self, args: Any) -> None:
        """Mean over the grid, image by image."""
        self._library.focus_mean(self._handle, ctypes.addressof(args))

    def relevance(self, args: Any) -> None:
        """One number per row: a quadratic form with a diagonal matrix."""
        self._library.focus_relevance(self._handle, ctypes.addressof(args))

    def level(self, args: Any) -> int:
        """Row numbers of a mask; returns how many rows."""
        return int(self._library.focus_level(ctypes.addressof(args)))

    def shrink(self, args: Any) -> None:
        """The set after a strided layer."""
        self._library.focus_shrink(ctypes.addressof(args))

    def table(self, args: Any) -> None:
        """Index table of one kernel geometry."""
        self._library.focus_table(ctypes.addressof(args))

    def runs(self, position: int, n: int, width: int, runs: int) -> int:
        """Starts of runs of horizontally adjacent rows; returns how many."""
        return int(self._library.focus_runs(position, n, width, runs))


@lru_cache(maxsize=4)
def _load(isa: Isa) -> Native | BuildError:
    try:
        return Native(ctypes.CDLL(str(LIBRARY.build(isa).path)), isa)
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"the compiled kernels do not load: {error}")


def native(isa: str) -> Native:
    """The kernels for ``avx512``, ``avx2`` or ``plain``.

    Raises:
        BuildError: they cannot be built or loaded here, or the processor lacks the instruction set.
    """
    if isa not in ISAS:
        raise BuildError(f"no instruction set {isa!r}; expected one of {', '.join(ISAS)}")
    found = _load(isa)
    if isinstance(found, BuildError):
        raise found
    return found


@lru_cache(maxsize=1)
def native_or_none() -> Native | None:
    """The best kernels that can be had, or None after one notice that says why not; results are the same, only slower.

    An instruction set that cannot be compiled here gives way to the next.
    """
    found = best(native)
    if isinstance(found, BuildError):
        warnings.warn(f"focused convolutions run on plain PyTorch: {found}", RuntimeWarning, stacklevel=3)
        return None
    return found
