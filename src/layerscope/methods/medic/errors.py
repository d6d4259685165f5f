"""What can go wrong in cloning and judging."""

from __future__ import annotations

from layerscope.errors import LayerscopeError


class MedicError(LayerscopeError):
    """A model, data set or setting that cloning, an attack or an evaluation cannot use."""
