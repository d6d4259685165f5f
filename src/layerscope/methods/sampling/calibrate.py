"""Start every unit where the noise matters: set magnitude and bias from one batch of data."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.methods.sampling.context import sampling_layers, seeded, using_mode
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.unit import SamplingLayer

_SMALLEST = 1e-3


def initialize(model: nn.Module, x: Any, target: float = 0.7, seed: int = 0) -> dict[str, float]:
    """Set beta_i = t / std(P_i) and c_i = -t mean(P_i) / std(P_i), layer by layer, from one batch.

    P_i is taken at beta = 1, c = 0; afterwards it has mean 0 and standard deviation t over the batch (and positions).
    A layer sees what the layers before it sample after their own initialization. With t = 0.7 the mean and the noise of
    the pre-activation are about equally strong. Weights, train flags and the global generators stay as they are.

    Args:
        model: a network with sampling layers.
        x: one batch, as the network takes it.
        target: standard deviation t of P, positive.
        seed: of the samples that are drawn on the way.

    Returns:
        Path -> the standard deviation that P had with beta = 1 and c = 0, mean over units.

    Raises:
        SamplingError: target is not positive, or a layer is not executed.

    Source: the data-dependent initialization of weight normalization (Salimans & Kingma 2016, arXiv 1602.07868, section
    3), on the argument of erf.
    """
    if not target > 0:
        raise SamplingError(f"target must be positive, got {target}")
    layers = sampling_layers(model)
    spread: dict[str, float] = {}
    flags = [(m, m.training) for m in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(seeded(model, seed))
        stack.enter_context(using_mode(model, "marginal"))
        for path, layer in layers:
            handle = layer.register_forward_pre_hook(_setter(path, target, spread))
            stack.callback(handle.remove)
        model.eval()
        try:
            model(x)
        finally:
            for module, flag in flags:
                module.training = flag
    if missing := [path for path, _ in layers if path not in spread]:
        raise SamplingError(f"the batch does not pass through {missing[0]!r}: it cannot be initialized from data")
    return spread


def _setter(path: str, target: float, spread: dict[str, float]) -> Any:
    def set_layer(layer: SamplingLayer, args: tuple[Tensor, ...]) -> None:
        if path in spread:  # a layer that is called again keeps what its first call set
            return
        layer.beta.fill_(1.0)
        if layer.c is not None:
            layer.c.zero_()
        p = layer.pre_activation(args[0]).float()
        units = p.movedim(1, -1) if p.ndim == 4 else p
        rows = units.reshape(-1, units.shape[-1])
        std, mean = rows.std(0, correction=0).clamp_min(_SMALLEST), rows.mean(0)
        beta = target / std
        layer.beta.copy_(beta.view(-1, 1, 1).expand_as(layer.beta) if layer.beta.ndim == 3 else beta)
        if layer.c is not None:
            layer.c.copy_(-mean * beta)
        spread[path] = float(std.mean())

    return set_layer
