"""The parts of every reference network: seeded layers, and ``weight -> norm -> activation`` in that order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from layerscope.norms import Recipe

#: What surrounds a map.
Padding = Literal["zeros", "circular"]


class Maker:
    """Makes the layers of one network: weights from one seeded generator, norms and activations from one recipe.

    Convolutions and hidden linear layers are He-normal, ``std = sqrt(gain / fan_in)``; the classifier is uniform in
    ``+-1/sqrt(fan_in)``, which is PyTorch's default. The generator is used for nothing else: two networks of
    the same spec and seed share their drawn weights whatever their norm is.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)

    def conv(
        self,
        c_in: int,
        c_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        padding_mode: Padding = "zeros",
        groups: int = 1,
        gain: float = 2.0,
    ) -> nn.Module:
        """A convolution, wrapped as the recipe wants it; by default it keeps the map's size (divided by ``stride``)."""
        layer = nn.Conv2d(
            c_in,
            c_out,
            kernel,
            stride=stride,
            padding=kernel // 2 if padding is None else padding,
            padding_mode=padding_mode,
            groups=groups,
            bias=self.recipe.needs_bias,
            device="meta",
        )
        return self._drawn(layer, gain)

    def linear(self, c_in: int, c_out: int, *, gain: float = 2.0) -> nn.Module:
        """A hidden linear layer, wrapped as the recipe wants it."""
        return self._drawn(nn.Linear(c_in, c_out, bias=self.recipe.needs_bias, device="meta"), gain)

    def head(self, c_in: int, classes: int) -> nn.Linear:
        """The classifier: an ordinary linear layer that no recipe wraps."""
        layer = nn.Linear(c_in, classes, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(c_in)
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=self.generator)
            layer.bias.uniform_(-bound, bound, generator=self.generator)
        return layer

    def norm(self, channels: int) -> nn.Module:
        """What stands in the norm slot."""
        return self.recipe.norm(channels)

    def activation(self, channels: int, base: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
        """What stands in the activation slot; never in place, because the skip path may read the same tensor."""
        return self.recipe.activation(channels, base)

    def _drawn(self, layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Module:
        # Laid out on the meta device, so that PyTorch's own random start is not drawn only to be thrown away.
        layer = layer.to_empty(device="cpu")
        fan_in = layer.weight[0].numel()
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(gain / fan_in), generator=self.generator)
            if layer.bias is not None:
                layer.bias.zero_()
        return self.recipe.weight(layer)


class ConvLayer(nn.Module):
    """``act(norm(conv(x)))``."""

    def __init__(self, make: Maker, c_in: int, c_out: int, *, stride: int = 1, padding_mode: Padding = "zeros") -> None:
        super().__init__()
        self.conv = make.conv(c_in, c_out, stride=stride, padding_mode=padding_mode)
        self.norm = make.norm(c_out)
        self.act = make.activation(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H/stride, W/stride]."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class LinearLayer(nn.Module):
    """``act(norm(linear(x)))``."""

    def __init__(self, make: Maker, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = make.linear(c_in, c_out)
        self.norm = make.norm(c_out)
        self.act = make.activation(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in] -> [N, C_out]."""
        out: Tensor = self.act(self.norm(self.linear(x)))
        return out


class Gain(nn.Module):
    """A learnable scalar in front of a residual branch; 0 at the start makes the block the identity.

    Source: SkipInit, De and Smith 2020, arXiv 2002.10444.
    """

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        """``gain * x``."""
        return self.gain * x


class Map:
    """The size of the map while a network is laid out: says which strides are taken.

    A stride that would leave fewer than 2 x 2 positions is dropped (stride 1 in its place), so that every network
    takes small images too and a norm with statistics per map stays defined. From 17 pixels upward the paper's
    networks keep all their strides.
    """

    def __init__(self, height: int, width: int, *, overlap: bool = True) -> None:
        self.height, self.width = height, width
        # Convolutions whose windows do not overlap have no padding: what is left over at the border is lost.
        self.rounded = math.ceil if overlap else math.floor

    def stride(self, wanted: int) -> int:
        """``wanted`` if the map can bear it, else 1; the map shrinks accordingly."""
        height, width = self.rounded(self.height / wanted), self.rounded(self.width / wanted)
        if min(height, width) < 2:
            return 1
        self.height, self.width = height, width
        return wanted
