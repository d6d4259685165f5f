"""What can be wrong with a sampling network, and what is only suspicious."""

from __future__ import annotations

from layerscope.errors import LayerscopeError


class SamplingError(LayerscopeError):
    """A sampling layer or network that cannot be made or run; says what to do."""


class SamplingWarning(UserWarning):
    """The layer runs, but the law it samples is not the one it states; names the remedy."""
