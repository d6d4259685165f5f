"""Switchable normalization: a learned mixture of instance, layer and batch statistics. arXiv 1806.10779."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from layerscope.norms.base import NormInputError, require_several, wide
from layerscope.norms.running import RunningNorm


class SwitchableNorm(RunningNorm):
    """y = weight * (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + eps) + bias over k in instance, layer, batch.

    w and v are softmaxes of three learned logits each (equal weights at the start). Batch statistics are running ones
    in evaluation mode. Layer statistics run over all channels and positions of a sample.

    Raises:
        NormInputError: fewer than two positions (instance statistics need them).

    Source: Luo et al. 2018, arXiv 1806.10779.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.mean_logits = nn.Parameter(torch.zeros(3))
        self.var_logits = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, C] or [N, C, *] to the same shape."""
        axis = self.axis(x)
        if x.ndim == 2:
            raise NormInputError(f"{self.label} needs positions, [N, C, H, W] or [N, S, C]; got {tuple(x.shape)}")
        axes = self.position_axes(x)
        count = math.prod(x.shape[a] for a in axes)
        require_several(count, self.label, "the positions", "use a norm without instance statistics")
        z = wide(x)
        mean_in = z.mean(axes, keepdim=True)
        var_in = (z - mean_in).square().mean(axes, keepdim=True)
        # law of total variance: the layer's moments from the instances'
        mean_ln = mean_in.mean(axis, keepdim=True)
        var_ln = (var_in + mean_in.square()).mean(axis, keepdim=True) - mean_ln.square()
        mean_bn, var_bn = (self.per_channel(p, z) for p in self.moments(z))
        w, v = torch.softmax(self.mean_logits, 0), torch.softmax(self.var_logits, 0)
        mean = w[0] * mean_in + w[1] * mean_ln + w[2] * mean_bn
        var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn
        return self.scale_and_shift((z - mean) * torch.rsqrt(var + self.eps)).to(x.dtype)
