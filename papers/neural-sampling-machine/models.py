"""The networks that stand beside each other: one shape, twelve ways to make its hidden units."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from layerscope.methods.sampling import Binarize, SamplingConv2d, SamplingLinear


class SignStraightThrough(nn.Module):
    """sign(x), gradient of the identity."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + (torch.where(x >= 0, 1.0, -1.0) - x).detach()


class DropConnect(nn.Linear):
    """A linear layer that drops half of its weights in training, one mask a batch."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        weight = F.dropout(self.weight, 0.5, self.training)
        return F.linear(x, weight, self.bias)


class NoisyReLU(nn.Module):
    """ReLU of a pre-activation with Bernoulli noise per input unit and no normalization: the stochastic net without."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.linear(x * (torch.rand_like(x) < 0.5)).relu()


HIDDEN = {
    "relu": lambda i, o: [nn.Linear(i, o), nn.ReLU()],
    "relu, batch norm": lambda i, o: [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()],
    "relu, weight norm": lambda i, o: [weight_norm(nn.Linear(i, o)), nn.ReLU()],
    "relu, dropout": lambda i, o: [nn.Linear(i, o), nn.ReLU(), nn.Dropout(0.5)],
    "relu, dropconnect": lambda i, o: [DropConnect(i, o), nn.ReLU()],
    "noisy relu": lambda i, o: [NoisyReLU(i, o)],
    "sign, straight-through": lambda i, o: [nn.Linear(i, o), SignStraightThrough()],
    "sign, straight-through, weight norm": lambda i, o: [weight_norm(nn.Linear(i, o)), SignStraightThrough()],
    "sign, erf gradient": lambda i, o: [SamplingLinear(i, o, mode="sign")],
    "nsm": lambda i, o: [SamplingLinear(i, o)],
    "nsm, Bernoulli per input": lambda i, o: [SamplingLinear(i, o, mode="unit", noise="bernoulli:p=0.5")],
    "nsm, Gaussian per input": lambda i, o: [SamplingLinear(i, o, mode="unit", noise="gaussian:std=1")],
}


def mlp(kind: str, inputs: int, width: int = 300, depth: int = 3, classes: int = 10) -> nn.Sequential:
    """Inputs - width x depth - classes on binarized pixels; the classifier is an ordinary linear layer."""
    sizes = [inputs, *[width] * depth]
    hidden = [m for i, o in pairwise(sizes) for m in HIDDEN[kind](i, o)]
    return nn.Sequential(Binarize(), nn.Flatten(), *hidden, nn.Linear(width, classes))


CONV = {
    "relu": (lambda i, o: [nn.Conv2d(i, o, 5), nn.ReLU()], HIDDEN["relu"]),
    "relu, batch norm": (lambda i, o: [nn.Conv2d(i, o, 5), nn.BatchNorm2d(o), nn.ReLU()], HIDDEN["relu, batch norm"]),
    "sign, erf gradient": (
        lambda i, o: [SamplingConv2d(i, o, 5, mode="sign", variance="exact" if i == 1 else None)],
        HIDDEN["sign, erf gradient"],
    ),
    "nsm": (lambda i, o: [SamplingConv2d(i, o, 5, variance="exact" if i == 1 else None)], HIDDEN["nsm"]),
}


def cnn(kind: str, classes: int = 10) -> nn.Sequential:
    """16c5 - mp2 - 32c5 - mp2 - 150 - classes on 28 x 28 pixels, which the first sampling layer reads as they are."""
    conv, dense = CONV[kind]
    features = [*conv(1, 16), nn.MaxPool2d(2), *conv(16, 32), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, *dense(512, 150), nn.Linear(150, classes))
