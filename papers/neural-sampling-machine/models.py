"""The networks that stand beside each other: one shape, thirteen ways to make its hidden units."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from layerscope.methods.sampling import Binarize, SamplingConv2d, SamplingLinear

KERNEL = 5


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
        return F.conv2d(x, F.dropout(self.weight, 0.5, self.training), self.bias)


class InputNoise(nn.Module):
    """Bernoulli noise on every input unit, always on: the stochastic net without normalization."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * (torch.rand_like(x) < 0.5)


def _plain(i: int, o: int, conv: bool) -> nn.Module:
    return nn.Conv2d(i, o, KERNEL) if conv else nn.Linear(i, o)


def _norm(o: int, conv: bool) -> nn.Module:
    return nn.BatchNorm2d(o) if conv else nn.BatchNorm1d(o)


def _dropconnect(i: int, o: int, conv: bool) -> nn.Module:
    return DropConnectConv2d(i, o, KERNEL) if conv else DropConnectLinear(i, o)


def _sampling(**options: str) -> Callable[[int, int, bool, bool], list[nn.Module]]:
    def make(i: int, o: int, conv: bool, real: bool) -> list[nn.Module]:
        variance = "exact" if real else "norm"
        layer = (
            SamplingConv2d(i, o, KERNEL, variance=variance, **options)
            if conv
            else SamplingLinear(i, o, variance=variance, **options)
        )
        return [layer]

    return make


#: name -> (inputs, outputs, is a convolution, inputs are real) -> modules
HIDDEN: dict[str, Callable[[int, int, bool, bool], list[nn.Module]]] = {
    "relu": lambda i, o, conv, _: [_plain(i, o, conv), nn.ReLU()],
    "relu, batch norm": lambda i, o, conv, _: [_plain(i, o, conv), _norm(o, conv), nn.ReLU()],
    "relu, weight norm": lambda i, o, conv, _: [weight_norm(_plain(i, o, conv)), nn.ReLU()],
    "relu, dropout": lambda i, o, conv, _: [_plain(i, o, conv), nn.ReLU(), nn.Dropout(0.5)],
    "relu, dropconnect": lambda i, o, conv, _: [_dropconnect(i, o, conv), nn.ReLU()],
    "noisy relu": lambda i, o, conv, _: [InputNoise(), _plain(i, o, conv), nn.ReLU()],
    "sign, straight-through": lambda i, o, conv, _: [_plain(i, o, conv), SignStraightThrough()],
    "sign, straight-through, weight norm": lambda i, o, conv, _: [
        weight_norm(_plain(i, o, conv)),
        SignStraightThrough(),
    ],
    "sign, straight-through, batch norm": lambda i, o, conv, _: [
        _plain(i, o, conv),
        _norm(o, conv),
        SignStraightThrough(),
    ],
    "sign, erf gradient": _sampling(mode="sign"),
    "nsm": _sampling(),
    "nsm, Bernoulli per input": _sampling(mode="unit", noise="bernoulli:p=0.5"),
    "nsm, Gaussian per input": _sampling(mode="unit", noise="gaussian:std=1"),
}


def mlp(kind: str, inputs: int, width: int = 300, depth: int = 3, classes: int = 10) -> nn.Sequential:
    """Inputs - width x depth - classes on binarized pixels; the classifier is an ordinary linear layer."""
    sizes = [inputs, *[width] * depth]
    hidden = [m for i, o in pairwise(sizes) for m in HIDDEN[kind](i, o, False, False)]
    return nn.Sequential(Binarize(), nn.Flatten(), *hidden, nn.Linear(width, classes))


def cnn(
    kind: str, pool: str = "max", channels: tuple[int, int] = (32, 64), width: int = 512, classes: int = 10
) -> nn.Sequential:
    """32c5 - p2 - 64c5 - p2 - 512 - classes, the paper's MNIST network, on 28 x 28 real pixels.

    Args:
        kind: how hidden units are made.
        pool: ``max``, of signs an OR; or ``avg``, whose results are no signs, so that the next layer takes the exact
            variance.
        channels: of the two convolutions.
        width: of the hidden linear layer.
        classes: outputs.
    """
    a, b = channels
    make, real = HIDDEN[kind], pool == "avg"
    pooling = nn.AvgPool2d(2) if real else nn.MaxPool2d(2)
    features = [*make(1, a, True, True), pooling, *make(a, b, True, real), pooling, nn.Flatten()]
    return nn.Sequential(*features, *make(16 * b, width, False, real), nn.Linear(width, classes))
