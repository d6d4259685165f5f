"""A sampling network as a file: its weights, and what became of each layer, so that the ordinary network can be made
into it again without the data it was converted with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerscope.errors import SpecError
from layerscope.methods.sampling.context import sampling_layers
from layerscope.methods.sampling.conversion import sampling_layer_like
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.layers import Binarize
from layerscope.methods.sampling.noises import noise as read_noise
from layerscope.methods.sampling.unit import SamplingLayer
from layerscope.stored import UnreadableError, read_stored
from layerscope.surgery import exchange

_FORMAT = "layerscope sampling network, 1"


def save_model(model: nn.Module, path: str | Path) -> Path:
    """Write weights, noise, mode and variance of every layer, and which modules became identities or doors.

    The file holds tensors and plain values only; no code is run when it is read.

    Raises:
        SamplingError: no sampling layer.
    """
    layers = {
        name: {
            "noise": layer.noise.name,
            "mode": layer.mode,
            "variance": layer.variance,
            "bias": layer.c is not None,
            "beta": list(layer.beta.shape),
        }
        for name, layer in sampling_layers(model)
    }
    content = {
        "format": _FORMAT,
        "layers": layers,
        "doors": {n: m.threshold for n, m in model.named_modules() if isinstance(m, Binarize)},
        "identities": [n for n, m in model.named_modules(remove_duplicate=False) if type(m) is nn.Identity],
        "state": model.state_dict(),
    }
    path = Path(path)
    torch.save(content, path)
    return path


def load_model(model: nn.Module, path: str | Path) -> nn.Module:
    """Make ``model`` the sampling network that was saved, and return it.

    Args:
        model: the ordinary network that was converted, or a network with the same sampling layers; changed in place.
        path: a file of :func:`save_model`.

    Raises:
        SamplingError: the file is none of these, or does not fit the network.
    """
    path = Path(path)
    content = _read(path)
    modules = dict(model.named_modules())
    new: dict[str, nn.Module] = {}
    layers: dict[str, SamplingLayer] = {}
    for name, how in content["layers"].items():
        there, parent = modules.get(name), name.rpartition(".")[0]
        if isinstance(there, SamplingLayer):
            layers[name] = there
            continue
        door = content["doors"].get(f"{parent}.0" if parent else "0")
        behind_door = door is not None and name.rpartition(".")[2] == "1" and _is_plain(modules.get(parent))
        site = parent if behind_door else name
        plain = modules.get(site)
        if plain is None or not _is_plain(plain):
            found = "nothing" if plain is None else type(plain).__name__
            raise SamplingError(
                f"{path} was saved of another network: it has a sampling layer at {name!r}, here is {found}"
            )
        layers[name] = sampling_layer_like(plain, _noise(how["noise"], name), bias=how["bias"])
        new[site] = nn.Sequential(Binarize(door), layers[name]) if behind_door else layers[name]
    for name in content["identities"]:
        if name in modules and type(modules[name]) is not nn.Identity:
            new[name] = nn.Identity()
    changed = exchange(model, new).model if new else model
    for name, how in content["layers"].items():
        layer = layers[name]
        layer.mode, layer.variance = how["mode"], how["variance"]
        if layer.noise.name != how["noise"]:
            layer.noise = _noise(how["noise"], name)
        if list(layer.beta.shape) != how["beta"]:
            layer.beta = nn.Parameter(layer.beta.new_ones(how["beta"]))
    try:
        changed.load_state_dict(content["state"])
    except RuntimeError as error:
        raise SamplingError(
            f"{path} does not fit {type(model).__name__}: {' '.join(str(error).split())[:300]}"
        ) from None
    return changed


def is_saved_model(path: str | Path) -> bool:
    """Whether the file is one of :func:`save_model`, and not plain weights."""
    try:
        _read(Path(path))
    except SamplingError:
        return False
    return True


def _is_plain(module: nn.Module | None) -> bool:
    return type(module) in (nn.Linear, nn.Conv2d)


def _noise(name: str, path: str) -> Any:
    try:
        return read_noise(name)
    except SpecError as error:
        raise SamplingError(
            f"layer {path!r} was saved with a noise of your own, {name!r}: load into a network that has sampling "
            "layers with that noise"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SamplingError(f"there is no file {str(path)!r}")
    try:
        content = read_stored(path)
    except UnreadableError as error:
        raise SamplingError(f"{path} cannot be read as a saved sampling network: {error}") from None
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        raise SamplingError(f"{path} is no saved sampling network: write one with sampling.save_model(model, path)")
    return dict(content)
