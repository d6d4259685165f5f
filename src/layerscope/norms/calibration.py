"""Running statistics measured anew at fixed weights, for every layer that keeps some."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerscope import inputs
from layerscope.errors import LayerscopeError


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any], max_batches: int | None = None) -> int:
    """Replace running averages by plain averages over some batches, with the weights as they are now.

    A running average follows the weights with a delay, and evaluation mode pays for it: little under batch
    normalization, many points of accuracy under mixture normalization. Batch norms (torch's and this package's),
    mixture and mode normalization are all served; everything else runs in evaluation mode, so that dropout does not
    disturb the statistics. A mixture's posteriors stay as they are, so that the result depends neither on the order of
    the batches nor on how often this is called.

    Args:
        model: any module; left in the mode it was in.
        batches: inputs (tensors, or dicts of keyword arguments), or tuples and lists whose first entry is the input.
            A single tensor is one batch. Of a dict, what ``forward`` does not name, such as labels, is left out.
            Batches of the training size give the statistics that training saw.
        max_batches: stop after so many.

    Returns:
        The number of batches used.

    Raises:
        LayerscopeError: no layer keeps running statistics, or there was no batch.
    """
    layers = [m for m in model.modules() if _keeps_statistics(m)]
    if not layers:
        raise LayerscopeError(f"{type(model).__name__} holds no layer with running statistics: nothing to recalibrate")
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in layers]
    like = next(model.parameters(), None)
    used = 0
    # the first batch is fetched before anything is forgotten: an empty loader must not cost the statistics
    iterator = iter([batches] if isinstance(batches, Tensor) else batches)
    batch = next(iterator, None)
    if batch is None or max_batches == 0:
        raise LayerscopeError("recalibrate was given no batch: pass an iterable of inputs, or of (input, target)")
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()  # type: ignore[operator]  # a method by _keeps_statistics
            layer.momentum = None  # type: ignore[assignment]  # torch's word for "average all batches"
            layer.training = True
        while batch is not None and (max_batches is None or used < max_batches):
            inputs.call(model, _input(model, batch, like))
            used += 1
            batch = next(iterator, None)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    return used


def _keeps_statistics(module: nn.Module) -> bool:
    return (
        callable(getattr(module, "reset_running_stats", None))
        and isinstance(getattr(module, "running_mean", None), Tensor)
        and hasattr(module, "momentum")
    )


def _input(model: nn.Module, batch: Any, like: Tensor | None) -> Any:
    x = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(x, Mapping):
        named = inspect.signature(model.forward).parameters
        x = {key: value for key, value in x.items() if key in named} or x
    return x if like is None else inputs.mapped(x, lambda t: t.to(like.device))
