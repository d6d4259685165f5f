"""Proxy normalization: what batch statistics do for each channel, without a batch. Labatie et al. 2021."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layerscope.norms.base import wide
from layerscope.norms.group import GroupNorm


def proxy_base(channels: int, size: int | None = None, groups: int | None = None, eps: float = 1e-5) -> GroupNorm:
    """The norm slot under :class:`ProxyActivation`: group norm without affine map; one group unless told otherwise."""
    if size is None and groups is None:
        groups = 1
    return GroupNorm(channels, size=size, groups=groups, eps=eps, affine=False)


def proxy_activation(
    channels: int, base: Callable[[], nn.Module], smooth: float = 0.03, points: int = 256
) -> ProxyActivation:
    """The activation slot of proxy normalization, around ``base``."""
    return ProxyActivation(channels, base, smooth, points)


class ProxyActivation(nn.Module):
    """y = (phi(w z + b) - E phi(w p + b)) / sqrt(Var phi(w p + b) + eps), p ~ N(shift, (1 + scale)^2) per channel.

    z comes from a layer or group norm. The expectation runs over a proxy variable instead of a batch: a fixed grid of
    normal quantiles. w, b are the norm's affine map; shift and scale are learned and start at zero. Every channel is
    thereby re-centred after the activation, as batch normalization does it and layer normalization does not.

    Args:
        channels: number of channels C.
        base: the activation phi; elementwise.
        smooth: eps of the formula; the paper finds about 0.03 right.
        points: number of quantiles.

    Source: arXiv 2106.03743.
    """

    grid: Tensor

    def __init__(
        self, channels: int, base: Callable[[], nn.Module] = nn.ReLU, smooth: float = 0.03, points: int = 256
    ) -> None:
        super().__init__()
        self.base = base()
        self.smooth = smooth
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.proxy_scale = nn.Parameter(torch.zeros(channels))
        self.proxy_shift = nn.Parameter(torch.zeros(channels))
        middle = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        self.register_buffer("grid", torch.special.ndtri(middle).float().view(-1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        z = wide(x)
        shape = (-1,) if x.ndim == 3 else (1, -1, *[1] * (x.ndim - 2))
        proxy = self.proxy_shift + (1 + self.proxy_scale) * self.grid
        response = wide(self.base(self.weight * proxy + self.bias))
        mean, var = response.mean(0), response.var(0, correction=0)
        y = wide(self.base(self.weight.view(shape) * z + self.bias.view(shape)))
        return ((y - mean.view(shape)) * torch.rsqrt(var + self.smooth).view(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.weight.numel()}, smooth={self.smooth}, points={self.grid.numel()}"
