"""Filter response normalization and its activation. Singh & Krishnan 2020, arXiv 1911.09737."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from layerscope.norms.base import ChannelNorm, require_several, wide


class FilterResponseNorm(ChannelNorm):
    """y = weight * x / sqrt(mean_S x^2 + |eps|) + bias per sample and channel: no centring, no batch statistics.

    Args:
        channels: number of channels C.
        eps: added to the second moment.
        learn_eps: eps is a learned scalar, starting at ``eps``. Needed where a map has one position, because
            x / sqrt(x^2 + eps) then keeps little more than the sign of x.

    Raises:
        NormInputError: a single position with a fixed eps.
    """

    def __init__(self, channels: int, eps: float = 1e-5, learn_eps: bool = True) -> None:
        super().__init__(channels, eps=eps)
        self.learned_eps = nn.Parameter(torch.tensor(eps)) if learn_eps else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        axes = self.position_axes(x)
        if self.learned_eps is None:
            count = math.prod(x.shape[a] for a in axes)
            require_several(count, self.label, "the positions", "use frn:learn_eps=true or larger maps")
        z = wide(x)
        eps = self.eps if self.learned_eps is None else self.learned_eps.abs()
        second = z.square().mean(axes, keepdim=True) if axes else z.square()
        return self.scale_and_shift(z * torch.rsqrt(second + eps)).to(x.dtype)


class ThresholdedLinearUnit(nn.Module):
    """TLU: max(x, tau) with one learned threshold per channel, starting at 0, where it is ReLU.

    FRN does not centre, so that its outputs can sit far from zero; the threshold learns to follow them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        tau = self.tau if x.ndim == 3 else self.tau.view(1, -1, *[1] * (x.ndim - 2))
        return torch.maximum(x, tau.to(x.dtype))

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.tau.numel()}"


def tlu(channels: int, base: Callable[[], nn.Module]) -> ThresholdedLinearUnit:
    """The activation slot beside FRN, in place of ``base``."""
    return ThresholdedLinearUnit(channels)
