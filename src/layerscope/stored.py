"""Files of torch.save, read without running any code from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from layerscope.errors import LayerscopeError


class UnreadableError(LayerscopeError):
    """Why a file cannot be read, in one line; whoever asked knows what it was to be."""


def read_stored(path: str | Path) -> Any:
    """Tensors, on the CPU, and plain values.

    Raises:
        UnreadableError: no such file, or no such content.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can raise anything
        raise UnreadableError((str(error).splitlines() or [type(error).__name__])[0]) from None
