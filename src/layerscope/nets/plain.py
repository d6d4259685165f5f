"""Networks without skip connections: the paper's plain CNNs, smaller ones, a VGG and an MLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from layerscope.nets.layers import ConvLayer, LinearLayer, Maker, Map, Padding

#: (width in units of the first stage, layers, whether the last of them has stride 2)
CFG: dict[str, tuple[tuple[int, int, bool], ...]] = {
    "cfg_10": ((1, 2, True), (2, 2, True), (4, 2, True), (8, 2, True), (8, 2, False)),
    "cfg_20": ((1, 4, True), (2, 4, True), (4, 4, True), (4, 4, True), (8, 4, False)),
    "cfg_40": ((1, 8, True), (2, 8, True), (4, 8, True), (8, 8, True), (8, 8, False)),
}


class PlainNet(nn.Module):
    """A stack of convolution layers, global average pooling and a linear classifier."""

    def __init__(self, layers: Sequence[nn.Module], channels: int, make: Maker, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = make.head(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        out: Tensor = self.head(self.pool(self.layers(x)).flatten(1))
        return out


class MLP(nn.Module):
    """Flatten, ``depth`` layers of ``linear -> norm -> activation``, and a linear classifier."""

    def __init__(self, make: Maker, features: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [features] + [width] * depth
        self.layers = nn.Sequential(*(LinearLayer(make, a, b) for a, b in itertools.pairwise(widths)))
        self.head = make.head(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Samples of any shape [N, ...] -> logits [N, classes]."""
        out: Tensor = self.head(self.layers(x.flatten(1)))
        return out


def cfg(name: str, make: Maker, in_shape: tuple[int, int, int], classes: int, *, width: int) -> PlainNet:
    """The paper's plain CNNs; at width 64: 64 ... 512 channels, 32 x 32 images end as 2 x 2 maps."""
    plan = []
    for scale, layers, strided in CFG[name]:
        plan += [(scale * width, 1)] * (layers - 1) + [(scale * width, 2 if strided else 1)]
    return _conv_net(make, in_shape, classes, plan)


def uniform(
    make: Maker, in_shape: tuple[int, int, int], classes: int, *, width: int, depth: int, padding: Padding
) -> PlainNet:
    """``depth`` convolutions of one width and no stride: the setting of mean-field recursions."""
    return _conv_net(make, in_shape, classes, [(width, 1)] * depth, padding)


def plain(make: Maker, in_shape: tuple[int, int, int], classes: int, *, width: int, depth: int) -> PlainNet:
    """Three stages of ``width``, ``2 width``, ``4 width``; the first convolution of each has stride 2."""
    plan = []
    for stage, layers in enumerate(shares(depth, 3)):
        plan += [(width * 2**stage, 2)] + [(width * 2**stage, 1)] * (layers - 1)
    return _conv_net(make, in_shape, classes, plan)


def vgg(make: Maker, in_shape: tuple[int, int, int], classes: int, *, width: int, depth: int) -> PlainNet:
    """Five stages of ``width`` times 1, 2, 4, 8, 8, with 2 x 2 max-pooling between them where the map can bear it."""
    channels, size, layers = in_shape[0], Map(*in_shape[1:]), list[nn.Module]()
    # As in VGG-16 the early stages are the short ones.
    for stage, count in enumerate(reversed(shares(depth, 5))):
        if stage and size.stride(2) == 2:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        for _ in range(count):
            layers.append(ConvLayer(make, channels, width * min(2**stage, 8)))
            channels = width * min(2**stage, 8)
    return PlainNet(layers, channels, make, classes)


def mlp(make: Maker, in_shape: tuple[int, ...], classes: int, *, width: int, depth: int) -> MLP:
    """``depth`` hidden layers of ``width`` units on the flattened input."""
    return MLP(make, math.prod(in_shape), width, depth, classes)


def shares(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` whole shares that differ by at most 1, larger ones first.

    >>> shares(20, 3)
    [7, 7, 6]
    """
    return [total // parts + (part < total % parts) for part in range(parts)]


def _conv_net(
    make: Maker,
    in_shape: tuple[int, int, int],
    classes: int,
    plan: Sequence[tuple[int, int]],
    padding_mode: Padding = "zeros",
) -> PlainNet:
    channels, size, layers = in_shape[0], Map(*in_shape[1:]), []
    for width, stride in plan:
        layers.append(ConvLayer(make, channels, width, stride=size.stride(stride), padding_mode=padding_mode))
        channels = width
    return PlainNet(layers, channels, make, classes)
