"""Norms of weights instead of activations, as parametrizations of a convolution or linear layer.

The layer keeps its class and its ``weight`` attribute; the trained tensor is ``parametrizations.weight.original``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layerscope.errors import SpecError
from layerscope.norms.base import wide
from layerscope.norms.catalog import RELU_GAIN

L = TypeVar("L", bound=nn.Module)

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class FilterMap(nn.Module, ABC):
    """Base: a map of the weight that treats every filter (all weights into one output channel) by itself.

    Args:
        weight: the weight to be mapped; gives shape, device and dtype.
        axis: axis of the output channels.
        eps: added to the norm or deviation.
        learn_gain: one learned factor per filter, starting at 1.
    """

    gain: nn.Parameter | None

    def __init__(self, weight: Tensor, axis: int = 0, eps: float = 1e-5, learn_gain: bool = True) -> None:
        super().__init__()
        self.axis, self.eps = axis, eps
        self.others = tuple(a for a in range(weight.ndim) if a != axis)
        self.fan_in = weight.numel() // weight.shape[axis]
        self.gain = nn.Parameter(torch.ones_like(weight.detach().amax(self.others))) if learn_gain else None

    @abstractmethod
    def normalize(self, w: Tensor) -> Tensor:
        """The mapped weight without the learned factor."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        mapped = self.normalize(wide(weight))
        if self.gain is not None:
            shape = [1] * weight.ndim
            shape[self.axis] = -1
            mapped = mapped * self.gain.view(shape)
        return mapped.to(weight.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"eps={self.eps}, learn_gain={self.gain is not None}"


class UnitFilters(FilterMap):
    """Weight normalization: w / (|w|_2 + eps) per filter, times the gain.

    Source: Salimans & Kingma 2016, arXiv 1602.07868, equation 2.
    """

    def normalize(self, w: Tensor) -> Tensor:
        """Filters of Euclidean norm 1."""
        length: Tensor = torch.linalg.vector_norm(w, dim=self.others, keepdim=True)
        return w / (length + self.eps)


class StandardizedFilters(FilterMap):
    """Weight standardization: factor * (w - mean) / (std + eps) per filter, biased std, times the gain.

    ``factor`` 1 is Weight Standardization (Qiao et al. 2019, arXiv 1903.10520); s / sqrt(fan_in) is the scaled one
    (Brock et al. 2021, arXiv 2101.08692), with s = sqrt(2 pi / (pi - 1)) = 1.7129 for ReLU, which keeps the variance
    of a layer's output at 1.
    """

    def __init__(
        self, weight: Tensor, axis: int = 0, eps: float = 1e-5, learn_gain: bool = True, factor: float = 1.0
    ) -> None:
        super().__init__(weight, axis, eps, learn_gain)
        self.factor = factor

    def normalize(self, w: Tensor) -> Tensor:
        """Filters of mean 0 and standard deviation ``factor``."""
        centred = w - w.mean(self.others, keepdim=True)
        std = centred.square().mean(self.others, keepdim=True).sqrt()
        return centred * (self.factor / (std + self.eps))


class CentredFilters(FilterMap):
    """Weight centring: w - mean(w) per filter."""

    def normalize(self, w: Tensor) -> Tensor:
        """Filters of mean 0."""
        return w - w.mean(self.others, keepdim=True)


def weight_norm(layer: L, eps: float = 1e-5) -> L:
    """Wrap ``layer`` so that its filters have norm ``gain`` (learned, starting at 1)."""
    weight, axis = _weight_of(layer, "weight", smallest=1)
    parametrize.register_parametrization(layer, "weight", UnitFilters(weight, axis, eps))
    return layer


def scaled_weight_standardization(layer: L, gain: float = RELU_GAIN, eps: float = 1e-5) -> L:
    """Wrap ``layer`` so that its filters have mean 0 and norm ``gain`` (times a learned factor, starting at 1)."""
    weight, axis = _weight_of(layer, "sws")
    fan_in = weight.numel() // weight.shape[axis]
    maps = StandardizedFilters(weight, axis, eps, factor=gain / math.sqrt(fan_in))
    parametrize.register_parametrization(layer, "weight", maps)
    return layer


def weight_standardization(layer: L, weight_eps: float = 1e-5) -> L:
    """Wrap ``layer`` so that its filters have mean 0 and standard deviation 1; a norm is expected to follow."""
    weight, axis = _weight_of(layer, "ws-group")
    maps = StandardizedFilters(weight, axis, weight_eps, learn_gain=False)
    parametrize.register_parametrization(layer, "weight", maps)
    return layer


def weight_centring(layer: L) -> L:
    """Wrap ``layer`` so that its filters have mean 0."""
    weight, axis = _weight_of(layer, "weight-centred")
    parametrize.register_parametrization(layer, "weight", CentredFilters(weight, axis, learn_gain=False))
    return layer


def _weight_of(layer: nn.Module, name: str, smallest: int = 2) -> tuple[Tensor, int]:
    """The layer's weight and the axis of its output channels.

    Raises:
        SpecError: not a convolution or linear layer, wrapped already, or filters too small to be normalized.
    """
    if not isinstance(layer, (*_CONV, *_TRANSPOSED, nn.Linear)):
        raise SpecError(f"{name} acts on a convolution or linear layer, got {type(layer).__name__}")
    if parametrize.is_parametrized(layer, "weight"):
        raise SpecError(f"{name}: the weight of this {type(layer).__name__} is parametrized already")
    axis = 1 if isinstance(layer, _TRANSPOSED) else 0
    if isinstance(layer, _TRANSPOSED) and layer.groups != 1:
        raise SpecError(f"{name} cannot tell the filters of a transposed convolution with groups={layer.groups}")
    fan_in = layer.weight.numel() // layer.weight.shape[axis]
    if fan_in < smallest:
        raise SpecError(
            f"{name} centres every filter, and a filter of {type(layer).__name__} with {fan_in} weight would be zero"
        )
    return layer.weight, axis


class StandardizedActivation(nn.Module):
    """(phi(x) - E phi(z)) / std phi(z) with z ~ N(0, 1): keeps mean 0 and variance 1 from layer to layer.

    For ReLU: E = 1/sqrt(2 pi) and 1/std = sqrt(2 pi / (pi - 1)), the "scaled ReLU" of Arpit et al. 2016
    (arXiv 1603.01431). Other activations: both moments by numerical integration.
    """

    def __init__(self, base: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.base = base()
        self.mean, self.std = gaussian_moments(base)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape the activation takes."""
        y: Tensor = (self.base(x) - self.mean) / self.std
        return y

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"mean={self.mean:.6f}, std={self.std:.6f}"


@torch.no_grad()
def gaussian_moments(base: Callable[[], nn.Module]) -> tuple[float, float]:
    """Mean and standard deviation of an elementwise activation of a standard normal number.

    Raises:
        SpecError: the activation is constant there.
    """
    phi = base()
    if type(phi) is nn.ReLU:
        return 1 / math.sqrt(2 * math.pi), 1 / RELU_GAIN
    z = torch.linspace(-12, 12, 48001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density /= density.sum()
    y = phi.double()(z.clone())
    mean = float((density * y).sum())
    std = math.sqrt(float((density * (y - mean).square()).sum()))
    if not std > 0:
        raise SpecError(f"{type(phi).__name__} is constant on standard normal input and cannot be standardized")
    return mean, std


def scaled_activation(channels: int, base: Callable[[], nn.Module], scaled: bool = True) -> nn.Module:
    """The activation slot beside weight norm: ``base`` made mean 0 and variance 1, or ``base`` itself."""
    return StandardizedActivation(base) if scaled else base()
