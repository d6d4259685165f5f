"""Batch Renormalization. Ioffe 2017, arXiv 1702.03275."""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.norms.base import wide
from layerscope.norms.running import RunningNorm


class BatchRenorm(RunningNorm):
    """y = weight * ((x - mean_B) / s_B * r + d) + bias, with r and d pulling the batch's moments to the running ones.

    r = clip(s_B / s, 1/rmax, rmax), d = clip((mean_B - mean) / s, -dmax, dmax), both without gradient, s the running
    deviation. With r and d unclipped the output is what evaluation mode gives. The limits start at r = 1, d = 0
    (plain batch norm) and reach ``rmax`` and ``dmax`` linearly after ``ramp`` batches.

    Args:
        channels: number of channels C.
        eps: added to the variances.
        momentum: weight of the newest batch in the running statistics (the paper uses 0.01).
        rmax: final limit of r, at least 1.
        dmax: final limit of d, at least 0.
        ramp: batches until the limits are reached; the paper takes 5000 and more at ImageNet's length.

    Raises:
        NormInputError: in training mode, one value per channel.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        rmax: float = 3.0,
        dmax: float = 5.0,
        ramp: int = 1000,
    ) -> None:
        super().__init__(channels, eps, momentum)
        self.rmax, self.dmax, self.ramp = rmax, dmax, ramp

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        z = wide(x)
        if not self.training:
            scale = torch.rsqrt(self.running_var.to(z.dtype) + self.eps)
            shift = -self.running_mean.to(z.dtype) * scale
        else:
            running_mean, running_std = self.running_mean.clone(), torch.sqrt(self.running_var + self.eps)
            share = ((self.num_batches_tracked + (self.ramp == 0)) / max(self.ramp, 1)).clamp(max=1.0)
            mean, var = self.batch_moments(z)
            std = torch.sqrt(var + self.eps)
            rmax, dmax = 1 + (self.rmax - 1) * share, self.dmax * share
            r = torch.minimum(torch.maximum(std.detach() / running_std, 1 / rmax), rmax)
            d = torch.minimum(torch.maximum((mean.detach() - running_mean) / running_std, -dmax), dmax)
            scale = (r / std).to(z.dtype)
            shift = d.to(z.dtype) - mean * scale
        return self.scale_and_shift(z * self.per_channel(scale, z) + self.per_channel(shift, z)).to(x.dtype)
