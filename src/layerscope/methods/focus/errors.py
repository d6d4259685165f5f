"""What can go wrong with a focused model. Each is also a ValueError or TypeError, which is what callers expect."""

from __future__ import annotations

from layerscope.errors import BuildError, LayerscopeError

__all__ = ["BuildError", "FocusError", "FocusTypeError"]


class FocusError(LayerscopeError, ValueError):
    """A network, mask, threshold or calibration set that focusing cannot use."""


class FocusTypeError(LayerscopeError, TypeError):
    """An argument of the wrong type; the message names it."""
