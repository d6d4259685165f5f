"""Switch the noise of a whole network: off, to another mode, or to a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import nn

from layerscope.errors import did_you_mean
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.functional import MODES, Mode
from layerscope.methods.sampling.unit import SamplingLayer


def sampling_layers(model: nn.Module) -> list[tuple[str, SamplingLayer]]:
    """Path and layer of every sampling layer.

    Raises:
        SamplingError: there is none.
    """
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, SamplingLayer)]
    if not found:
        raise SamplingError(f"{type(model).__name__} has no sampling layer: make one with convert()")
    return found


@contextmanager
def using_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Inside, every sampling layer of ``model`` runs in this mode; afterwards each in its own again."""
    if mode not in MODES:
        raise SamplingError(f"no mode {mode!r}; {did_you_mean(mode, MODES)}")
    layers = [layer for _, layer in sampling_layers(model)]
    before = [layer.mode for layer in layers]
    try:
        for layer in layers:
            layer.mode = mode
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.mode = old


def deterministic(model: nn.Module, mode: Literal["mean", "sign"] = "mean") -> AbstractContextManager[None]:
    """A context in which nothing is random: ``mean`` passes erf(P) on, ``sign`` the more likely value.

    ``model.eval()`` does not do this: the noise of a sampling network belongs to the model, at test time too.
    """
    if mode not in ("mean", "sign"):
        raise SamplingError(f"deterministic evaluation is by 'mean' or 'sign', not {mode!r}")
    return using_mode(model, mode)


@contextmanager
def seeded(model: nn.Module, seed: int | torch.Generator) -> Iterator[torch.Generator]:
    """Inside, the layers draw from a generator of their own; the global one is not touched.

    The generator is made on the device of the network's parameters.
    """
    layers = [layer for _, layer in sampling_layers(model)]
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator(layers[0].weight.device)
    if not isinstance(seed, torch.Generator):
        generator.manual_seed(seed)
    before = [layer.generator for layer in layers]
    try:
        for layer in layers:
            layer.generator = generator
        yield generator
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.generator = old
