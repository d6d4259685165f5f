"""A training run on disk: written whole or not at all, read without running any code from the file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layerscope.errors import TrainingError
from layerscope.stored import UnreadableError, read_stored

_FORMAT = 1


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) to ``path``; a kill at any moment leaves the old file or the new one.

    Raises:
        TrainingError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({"layerscope_checkpoint": _FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from None


def load(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote.

    Raises:
        TrainingError: damaged, not a checkpoint of a training run, or from another version.
    """
    try:
        state = read_stored(path)
    except UnreadableError as error:
        raise TrainingError(
            f"{path} cannot be read as a checkpoint ({error}); delete it or pass resume=False"
        ) from None
    found = state.get("layerscope_checkpoint") if isinstance(state, dict) else None
    if found != _FORMAT:
        raise TrainingError(
            f"{path} is no training checkpoint of this version (format {found}, expected {_FORMAT}); "
            "choose another path or pass resume=False to overwrite it"
        )
    return dict(state)


def require_same(path: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise a TrainingError naming every setting in which the run on disk and this one differ."""
    changed = [
        f"{key} was {then.get(key, 'not set')} and is {now.get(key, 'not set')}"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{path} holds a different run: {'; '.join(changed)}. "
            "Choose another path, or pass resume=False to overwrite it"
        )
