"""Layers that stand where a norm stands and use no statistics, or only a response: DyT, Derf, GRN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerscope.norms.base import ChannelNorm, wide


class DynamicTanh(ChannelNorm):
    """DyT: y = weight * tanh(alpha x) + bias with one learned scalar alpha.

    A stand-in for layer normalization in pre-norm transformers. Where the norm follows the addition (post-norm) its
    slope below 1 shrinks the signal with every layer.

    Source: Zhu et al. 2025, arXiv 2503.10622.
    """

    def __init__(self, channels: int, alpha: float = 0.5) -> None:
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        return self.scale_and_shift(torch.tanh(self.alpha * wide(x))).to(x.dtype)


class DynamicErf(ChannelNorm):
    """Derf: y = weight * erf(alpha x + s) + bias with learned scalars alpha and s (0 at the start).

    Source: Chen et al. 2025, arXiv 2512.10938.
    """

    def __init__(self, channels: int, alpha: float = 0.5) -> None:
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        return self.scale_and_shift(torch.erf(self.alpha * wide(x) + self.shift)).to(x.dtype)


class GlobalResponseNorm(ChannelNorm):
    """GRN: y = weight * x * g_c / (mean_c g + eps) + bias + x, with g_c the 2-norm of channel c over positions.

    Weight and bias start at zero, so that a fresh layer is an identity: it says nothing at initialization.

    Source: ConvNeXt V2, Woo et al. 2023, arXiv 2301.00808.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias zero: an identity."""
        for p in (self.weight, self.bias):
            if p is not None:
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        axis = self.axis(x)
        z = wide(x)
        axes = self.position_axes(x)
        response = torch.linalg.vector_norm(z, dim=axes, keepdim=True) if axes else z.abs()
        relative = response / (response.mean(axis, keepdim=True) + self.eps)
        return (self.scale_and_shift(z * relative) + z).to(x.dtype)
