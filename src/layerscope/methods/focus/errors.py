"""What can go wrong with a focused model. Each is also a ValueError or TypeError, which is what callers expect."""

from __future__ import annotations

from layerscope.errors import LayerscopeError


class FocusError(LayerscopeError, ValueError):
    """A network, mask, threshold or calibration set that focusing cannot use."""


class FocusTypeError(LayerscopeError, TypeError):
    """An argument of the wrong type; the message names it."""


class BuildError(LayerscopeError):
    """The compiled kernels cannot be had here; everything still runs on plain PyTorch."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
        """Whether another instruction set would fail alike."""
