"""The networks that stand beside each other: one shape, fourteen ways to make its hidden units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from layerscope.methods.sampling import Binarize, SamplingConv2d, SamplingLinear


@dataclass(frozen=True)
class Place:
    """Where hidden units stand."""

    inputs: int
    outputs: int
    kernel: int = 0
    """Side of a convolution's kernel; 0 for a linear layer."""
    padding: int = 0
    stride: int = 1
    real: bool = False
    """Whether inputs are anything but -1 and +1."""
    first: bool = False


class SignStraightThrough(nn.Module):
    """sign(x), gradient of the identity."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (x - x.detach()) + ((x >= 0).to(x.dtype) * 2 - 1)


class DropConnectLinear(nn.Linear):
    """A linear layer that drops half of its weights in training, one mask a batch."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.linear(x, F.dropout(self.weight, 0.5, self.training), self.bias)


class DropConnectConv2d(nn.Conv2d):
    """A convolution that drops half of its weights in training, one mask a batch."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        weight = F.dropout(self.weight, 0.5, self.training)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class InputNoise(nn.Module):
    """Bernoulli noise on every input unit, always on: the stochastic net without normalization."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * (torch.rand_like(x) < 0.5)


def _plain(at: Place) -> nn.Module:
    if at.kernel:
        return nn.Conv2d(at.inputs, at.outputs, at.kernel, at.stride, at.padding)
    return nn.Linear(at.inputs, at.outputs)


def _norm(at: Place) -> nn.Module:
    return nn.BatchNorm2d(at.outputs) if at.kernel else nn.BatchNorm1d(at.outputs)


def _dropconnect(at: Place) -> nn.Module:
    if at.kernel:
        return DropConnectConv2d(at.inputs, at.outputs, at.kernel, at.stride, at.padding)
    return DropConnectLinear(at.inputs, at.outputs)


def _batch_norm(at: Place) -> list[nn.Module]:
    return [_plain(at), _norm(at), nn.ReLU()]


def _sampling(ordinary_first: bool = False, **options: str) -> Callable[[Place], list[nn.Module]]:
    def make(at: Place) -> list[nn.Module]:
        if at.first and ordinary_first:
            return _batch_norm(at)
        if at.kernel:
            variance = "exact" if at.real else None
            shape = at.inputs, at.outputs, at.kernel, at.stride, at.padding
            return [SamplingConv2d(*shape, variance=variance, **options)]
        return [SamplingLinear(at.inputs, at.outputs, variance="exact" if at.real else "norm", **options)]

    return make


#: name -> how a layer of hidden units is made
HIDDEN: dict[str, Callable[[Place], list[nn.Module]]] = {
    "relu": lambda at: [_plain(at), nn.ReLU()],
    "relu, batch norm": _batch_norm,
    "relu, weight norm": lambda at: [weight_norm(_plain(at)), nn.ReLU()],
    "relu, dropout": lambda at: [_plain(at), nn.ReLU(), nn.Dropout(0.5)],
    "relu, dropconnect": lambda at: [_dropconnect(at), nn.ReLU()],
    "noisy relu": lambda at: [InputNoise(), _plain(at), nn.ReLU()],
    "sign, straight-through": lambda at: [_plain(at), SignStraightThrough()],
    "sign, straight-through, weight norm": lambda at: [weight_norm(_plain(at)), SignStraightThrough()],
    "sign, straight-through, batch norm": lambda at: [_plain(at), _norm(at), SignStraightThrough()],
    "sign, erf gradient": _sampling(mode="sign", noise="gaussian"),
    # the law is the same for every noise; Gaussian noise follows it at any fan-in, nine taps included
    "nsm": _sampling(noise="gaussian"),
    "nsm, ordinary first layer": _sampling(ordinary_first=True, noise="gaussian"),
    "nsm, Bernoulli per input": _sampling(mode="unit", noise="bernoulli:p=0.5"),
    "nsm, Gaussian per input": _sampling(mode="unit", noise="gaussian:std=1"),
}


def mlp(kind: str, inputs: int, width: int = 300, depth: int = 3, classes: int = 10) -> nn.Sequential:
    """Inputs - width x depth - classes on binarized pixels; the classifier is an ordinary linear layer."""
    sizes = [inputs, *[width] * depth]
    hidden = [m for n, (i, o) in enumerate(pairwise(sizes)) for m in HIDDEN[kind](Place(i, o, first=n == 0))]
    return nn.Sequential(Binarize(), nn.Flatten(), *hidden, nn.Linear(width, classes))


def cnn(kind: str, pool: str = "max", side: int = 28, classes: int = 10) -> nn.Sequential:
    """Two convolutions, each halving the map, a hidden linear layer and the classifier, on real pixels.

    On 28 x 28 pixels 32c5 - p2 - 64c5 - p2 - 512 - classes, the paper's MNIST network; on smaller images, which have no
    room for it, 32c3 - 64c3 - 256 - classes with a border of one pixel of zeros.

    Args:
        kind: how hidden units are made.
        pool: what halves a map. ``max``, of signs an OR; ``avg``, whose results are no signs, so that the next layer
            takes the exact variance; or ``stride``, no pool but convolutions of stride 2.
        side: of an image, pixels.
        classes: outputs.
    """
    kernel, padding, width = (5, 0, 512) if side >= 28 else (3, 1, 256)
    stride = 2 if pool == "stride" else 1
    layers: list[nn.Module] = []
    left = side
    for n, (i, o) in enumerate(pairwise((1, 32, 64))):
        real = n == 0 or pool == "avg" or kind == "nsm, ordinary first layer"
        layers += HIDDEN[kind](Place(i, o, kernel, padding, stride, real, n == 0))
        left = (left + 2 * padding - kernel) // stride + 1
        if pool != "stride":
            layers.append(nn.AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(2))
            left //= 2
    hidden = HIDDEN[kind](Place(64 * left * left, width, real=pool == "avg"))
    return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(width, classes))
