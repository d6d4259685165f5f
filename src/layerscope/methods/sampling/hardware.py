"""What a device needs to be this network: noise, offsets, biases and fixed-point weights for every synapse array.

The law depends on the direction of a unit's weights only, so every row may use the whole range of its integers: the
scale of a row is never stored, and the best integers are those that point most nearly the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from layerscope.methods.sampling.context import sampling_layers
from layerscope.methods.sampling.errors import SamplingError, SamplingWarning
from layerscope.methods.sampling.noises import Noise
from layerscope.methods.sampling.noises import noise as read_noise
from layerscope.methods.sampling.unit import NORMAL_ENOUGH

_CLIPS = 24


@dataclass(frozen=True, eq=False)
class SynapseArray:
    """One layer as a device sees it: u_i = sum_j (xi_ij + a_i) w_ij z_j + b_i, z_i = sign(u_i), sign(0) = +1."""

    path: str
    noise: str
    """The noise xi of every connection, such as ``bernoulli:p=0.5``."""
    mean: float
    std: float
    offsets: Tensor
    """a_i, [O] (or [O, H', W'] with one magnitude per location)."""
    biases: Tensor
    """b_i in units of the integer weights, [O]."""
    weights: Tensor
    """w_ij as integers in [-(2^(bits-1) - 1), 2^(bits-1) - 1], shape of the layer's weight."""
    bits: int
    cosine: float
    """Cosine between real and integer rows, the smallest over units: 1 means that nothing was lost."""
    normality: float
    """Smallest n p (1 - p) over units with their effective fan-in; below 3 a Bernoulli device leaves the law."""


def fixed_point_rows(weight: Tensor, bits: int) -> Tensor:
    """The integers that point most nearly along each row of ``weight`` [O, ...], with this many bits.

    Symmetric, 2^bits - 1 levels. For each row the clipping point is the best of a grid by the cosine with the row, as
    no scale needs to be kept. Rows of zeros stay zeros.

    Raises:
        SamplingError: fewer than 2 bits or more than 16.
    """
    if not 2 <= bits <= 16:
        raise SamplingError(f"fixed-point weights take 2 to 16 bits, got {bits}")
    top = 2 ** (bits - 1) - 1
    rows = weight.detach().double().flatten(1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    best, best_cosine = torch.zeros_like(rows), torch.full((len(rows), 1), -2.0, dtype=torch.float64)
    best_cosine = best_cosine.to(rows.device)
    for clip in torch.linspace(1.0, 0.15, _CLIPS).tolist():
        integers = (rows / (largest * clip) * top).round().clamp(-top, top)
        cosine = nn.functional.cosine_similarity(integers, rows, dim=1, eps=1e-300)[:, None]
        better = cosine > best_cosine
        best = torch.where(better, integers, best)
        best_cosine = torch.where(better, cosine, best_cosine)
    return best.reshape(weight.shape).to(torch.int32)


@contextmanager
def fixed_point(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside, every sampling layer computes with fixed-point weights; afterwards with its own again, to the bit.

    Raises:
        SamplingError: no sampling layer, or fewer than 2 bits or more than 16.
    """
    layers = [layer for _, layer in sampling_layers(model)]
    rounded = [fixed_point_rows(layer.weight, bits) for layer in layers]
    saved = [layer.weight.detach().clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer, integers in zip(layers, rounded, strict=True):
                layer.weight.copy_(integers)
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, saved, strict=True):
                layer.weight.copy_(weight)


def export(model: nn.Module, bits: int = 8, noise: str | Noise | None = None) -> tuple[SynapseArray, ...]:
    """The synapse arrays of every sampling layer.

    Args:
        model: a network with sampling layers.
        bits: bits of the integer weights, 2 to 16.
        noise: the device's noise; each layer's own if left out. The offsets a_i = beta_i kappa - m follow from it.

    Warns:
        SamplingWarning: a row of zeros, or rows with too few weights that count for the noise to sum to a normal one.

    Raises:
        SamplingError: no sampling layer, or fewer than 2 bits or more than 16.
    """
    arrays = []
    for path, layer in sampling_layers(model):
        if len(empty := torch.nonzero(layer.norm().detach() == 0).flatten()):
            warnings.warn(
                f"{path or type(layer).__name__}: unit(s) {empty[:5].tolist()} have a weight row of zeros, on which "
                "no bias can be put: on a device they output +1 whatever c says; call reset_parameters() and train",
                SamplingWarning,
                stacklevel=2,
            )
        device = layer.noise if noise is None else read_noise(noise)
        normality = [device.normality(n) for n in layer.effective_fan_in().tolist()]
        if few := sum(0 < n < NORMAL_ENOUGH for n in normality):
            warnings.warn(
                f"{path or type(layer).__name__}: {few} of {len(normality)} units have n p (1 - p) below "
                f"{NORMAL_ENOUGH:g} with {device.name} and the n weights that count (smallest "
                f"{min(n for n in normality if n > 0):.2g}): a device would fire with other probabilities than the "
                "network; use p nearer to 0.5 or gaussian noise",
                SamplingWarning,
                stacklevel=2,
            )
        integers = fixed_point_rows(layer.weight, bits)
        length = integers.double().flatten(1).norm(dim=1)
        real = layer.weight.detach().double().flatten(1)
        cosine = nn.functional.cosine_similarity(integers.double().flatten(1), real, dim=1, eps=1e-300)
        bias = layer.bias()
        c = torch.zeros(len(length)).to(length) if bias is None else bias.detach().double()
        arrays.append(
            SynapseArray(
                path,
                device.name,
                device.mean,
                device.std,
                torch.as_tensor(device.offset(layer.beta.detach().double())),
                c * device.kappa * length,
                integers,
                bits,
                float(cosine.min()),
                float(min(normality)),
            )
        )
    return tuple(arrays)


def save(arrays: tuple[SynapseArray, ...], path: str | Path) -> Path:
    """Write synapse arrays to one ``.npz`` file: ``<layer>/weights``, ``/offsets``, ``/biases``, ``/noise``."""
    path = Path(path)
    content: dict[str, np.ndarray] = {}
    for array in arrays:
        content[f"{array.path}/weights"] = array.weights.cpu().numpy()
        content[f"{array.path}/offsets"] = array.offsets.cpu().numpy()
        content[f"{array.path}/biases"] = array.biases.cpu().numpy()
        content[f"{array.path}/noise"] = np.array([array.mean, array.std])
    with path.open("wb") as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type]  # numpy's signature lists allow_pickle first
    return path
