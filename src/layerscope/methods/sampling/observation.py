"""Is a sampling layer still sampling, and is it still saying something about its input?

Noise that is always on makes the outputs of different inputs dissimilar by itself, so that a similarity between samples
no longer tells what is informative. Several draws do: they part what the input decides from what chance decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.methods.sampling.context import sampling_layers, seeded
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.unit import SamplingLayer

#: Beyond it exp(-P^2) is below 0.002: the unit is as good as deterministic and hardly learns.
SATURATED = 2.5


@dataclass(frozen=True)
class LayerReport:
    """One sampling layer on one batch."""

    path: str
    p_std: float
    """Standard deviation of P over samples and positions, mean over units. About 0.7 after :func:`initialize`."""
    saturated_share: float
    """Share of |P| > 2.5: units that neither sample nor learn."""
    signal_share: float
    """Variance of E[z | input] over inputs / variance of z. In [0, 1]: 0 pure noise, 1 deterministic."""
    beta_min: float
    """Smallest |beta|."""
    beta_max: float
    """Largest |beta|."""


def observe(model: nn.Module, x: Tensor, draws: int = 16, seed: int = 0) -> tuple[LayerReport, ...]:
    """Run a batch several times and report on every sampling layer, in order of execution.

    The noise of earlier layers counts as noise of the later ones. The variance of E[z | input] is estimated without
    bias, by taking the noise that is left in the mean over draws off again.

    Args:
        model: a network with sampling layers; run in eval mode, nothing changes.
        x: a batch of at least 2 inputs.
        draws: passes, at least 2.
        seed: of the noise.

    Raises:
        SamplingError: no sampling layer, fewer than 2 inputs or draws.
    """
    if len(x) < 2 or draws < 2:
        raise SamplingError(f"parting signal from noise takes at least 2 inputs and 2 draws, got {len(x)} and {draws}")
    layers = sampling_layers(model)
    sums: dict[str, Tensor] = {}
    spread: dict[str, tuple[float, float]] = {}

    def watch(path: str) -> Any:
        def hook(layer: SamplingLayer, args: tuple[Tensor, ...], z: Tensor) -> None:
            sums[path] = sums.get(path, torch.zeros((), dtype=torch.float64)) + z.double()
            if path not in spread:
                p = layer.pre_activation(args[0]).double()
                rows = p.movedim(1, -1).reshape(-1, p.shape[1]) if p.ndim == 4 else p.reshape(-1, p.shape[-1])
                spread[path] = float(rows.std(0).mean()), float((rows.abs() > SATURATED).double().mean())

        return hook

    flags = [(m, m.training) for m in model.modules()]
    handles = [layer.register_forward_hook(watch(path)) for path, layer in layers]
    try:
        model.eval()
        with torch.no_grad(), seeded(model, seed):
            for _ in range(draws):
                model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in flags:
            module.training = flag
    by_path = dict(layers)
    return tuple(_report(path, by_path[path], sums[path] / draws, draws, *spread[path]) for path in sums)


def _report(path: str, layer: SamplingLayer, mean: Tensor, draws: int, std: float, saturated: float) -> LayerReport:
    # z = +-1, so that its second moment over the draws is 1
    noise = float((1 - mean.square()).mean()) * draws / (draws - 1)
    signal = max(0.0, float(mean.var(0).mean()) - noise / draws)
    beta = layer.beta.detach().abs()
    share = signal / (signal + noise) if signal + noise > 0 else 0.0
    return LayerReport(path, std, saturated, share, float(beta.min()), float(beta.max()))
