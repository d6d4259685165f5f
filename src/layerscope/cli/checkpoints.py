"""Weights from a file, for every command that takes a network and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def load_into(model: nn.Module, checkpoint: Path, name: str) -> None:
    """Load a state dict into ``model``.

    Raises:
        SourceError: no such file, not plain weights, or weights of another network.
    """
    from layerscope.errors import SourceError

    try:
        model.load_state_dict(read_state(checkpoint))
    except (RuntimeError, TypeError) as error:
        first = " ".join(str(error).split())[:300]
        raise SourceError(f"{checkpoint} does not fit {name}: {first}") from None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A state dict (.pt or .safetensors), read without running any code from the file.

    Raises:
        SourceError: no such file, or not plain weights.
        MissingExtraError: .safetensors without the package.
    """
    from layerscope.errors import MissingExtraError, SourceError
    from layerscope.stored import UnreadableError, read_stored

    if not checkpoint.is_file():
        raise SourceError(f"there is no checkpoint {str(checkpoint)!r}")
    if checkpoint.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError:
            raise MissingExtraError("safetensors", "zoo", "reading .safetensors") from None
        try:
            return _bare(load_file(checkpoint))
        except SafetensorError as error:
            raise SourceError(f"{checkpoint} cannot be read as safetensors: {error}") from None
    try:
        found = read_stored(checkpoint)
    except UnreadableError as error:
        raise SourceError(
            f"{checkpoint} cannot be read as plain weights ({error}); save  model.state_dict()  and not the model: "
            "loading whole models from strangers runs their code"
        ) from None
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise SourceError(f"{checkpoint} holds a {type(found).__name__}; expected a state dict")
    return _bare(found)


def _bare(state: dict[Any, Any]) -> dict[str, Any]:
    """Without the prefixes that DataParallel and torch.compile put before every name."""
    names = {str(k): v for k, v in state.items()}
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): v for name, v in names.items()}
    return names
