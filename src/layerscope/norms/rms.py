"""Norms over the channels of one position: RMSNorm, layer norm for channel-first maps, ScaleNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import SpecError
from layerscope.norms.base import ChannelNorm, require_several, wide


class RMSNorm(ChannelNorm):
    """y = weight * x / sqrt(mean_C x^2 + eps) at every position: no centring, no bias.

    Args:
        channels: number of channels C.
        eps: added to the second moment.
        p: share of the channels, the first ones, from which the second moment is estimated (pRMSNorm); 1 takes all.

    Raises:
        SpecError: the share holds no channel, or more than there are.

    Source: Zhang & Sennrich 2019, arXiv 1910.07467.
    """

    def __init__(self, channels: int, eps: float = 1e-5, p: float = 1.0) -> None:
        super().__init__(channels, eps=eps, bias=False)
        self.p = p
        self.used = math.ceil(p * channels)
        if not 1 <= self.used <= channels:
            raise SpecError(f"rms:p={p} must keep between one and all of {channels} channels")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        axis = self.axis(x)
        z = wide(x)
        second = z.narrow(axis, 0, self.used).square().mean(axis, keepdim=True)
        return self.scale_and_shift(z * torch.rsqrt(second + self.eps)).to(x.dtype)


class LayerNorm2d(ChannelNorm):
    """Layer normalization over the channels of every position by itself, for maps [N, C, H, W].

    The norm of ConvNeXt ("channels last" layer norm; Liu et al. 2022, arXiv 2201.03545). On [N, C] and tokens it is
    ``torch.nn.LayerNorm(C)``.

    Raises:
        NormInputError: one channel.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        axis = self.axis(x)
        require_several(self.channels, self.label, "the channels", "use a norm over samples or positions")
        last = x.movedim(axis, -1)
        y = F.layer_norm(last, (self.channels,), self.weight, self.bias, self.eps)
        return y.movedim(-1, axis).to(x.dtype)


class ScaleNorm(ChannelNorm):
    """y = s x / max(|x|_2, eps) at every position, with one learned scalar s that starts at sqrt(C).

    Source: Nguyen & Salazar 2019, arXiv 1910.05895.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps, affine=False)
        self.scale = nn.Parameter(torch.tensor(math.sqrt(channels)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        axis = self.axis(x)
        z = wide(x)
        length: Tensor = torch.linalg.vector_norm(z, dim=axis, keepdim=True).clamp_min(self.eps)
        return (self.scale * z / length).to(x.dtype)
