"""The backends by name."""

from __future__ import annotations

import os

from layerscope.methods.focus.backend import Backend
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.native import native, native_or_none
from layerscope.methods.focus.rows_compiled import CompiledBackend
from layerscope.methods.focus.rows_torch import TorchBackend

BACKENDS = ("auto", "avx512", "avx2", "plain", "torch")


def make_backend(name: str = "auto") -> Backend:
    """The backend of this name; ``auto`` is the best compiled one, or torch after one notice.

    The environment variable ``LAYERSCOPE_FOCUS_BACKEND`` names what ``auto`` takes.

    Raises:
        FocusError: unknown name.
        BuildError: a compiled one was named and cannot be had.
    """
    if name not in BACKENDS:
        raise FocusError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "auto" and (forced := os.environ.get("LAYERSCOPE_FOCUS_BACKEND")):
        if forced not in BACKENDS:
            raise FocusError(f"LAYERSCOPE_FOCUS_BACKEND: expected one of {', '.join(BACKENDS)}, got {forced!r}")
        name = forced
    if name == "torch":
        return TorchBackend()
    if name == "auto":
        library = native_or_none()
        return TorchBackend() if library is None else CompiledBackend(library)
    return CompiledBackend(native(name))
