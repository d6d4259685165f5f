"""Base of the layers that use batch statistics in training and running ones in evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerscope.norms.base import ChannelNorm, require_several, wide


class RunningNorm(ChannelNorm):
    """Running mean and variance per channel, with torch's conventions.

    ``running_var`` holds the unbiased variance; ``momentum`` is the weight of the newest batch, and None asks for the
    plain average of all batches seen since :meth:`reset_running_stats` (what ``recalibrate`` uses).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__(channels, eps=eps, affine=affine, bias=bias)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1, no batches seen."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def batch_axes(self, x: Tensor) -> tuple[int, ...]:
        """Axes of samples and positions."""
        return (0, *self.position_axes(x))

    def batch_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per channel over the batch, with gradient, shaped (C,); updates the running ones.

        Raises:
            NormInputError: one value per channel.
        """
        count = math.prod(x.shape) // self.channels
        remedy = "use a larger batch, eval() mode, or a norm without batch statistics such as group"
        require_several(count, f"{self.label} in training mode", "the batch", remedy)
        axes = self.batch_axes(x)
        mean = x.mean(axes)
        var = (x - self.per_channel(mean, x)).square().mean(axes)
        self.track(mean, var * (count / (count - 1)))
        return mean, var

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Batch moments in training mode (which updates the running ones), running moments otherwise."""
        if self.training:
            return self.batch_moments(x)
        return self.running_mean.to(x.dtype), self.running_var.to(x.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Fold one batch into the running statistics; no autograd history is kept."""
        self.num_batches_tracked += 1
        if self.momentum is None:
            rate = 1.0 / self.num_batches_tracked.to(self.running_mean.dtype)
        else:
            rate = torch.as_tensor(self.momentum, dtype=self.running_mean.dtype, device=self.running_mean.device)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), rate)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{super().extra_repr()}, momentum={self.momentum}"


class VarianceNorm(RunningNorm):
    """Variance normalization: y = weight * x / sqrt(var + eps) + bias. Divides by the batch's deviation, never centres.

    The variance itself is centred, biased, per channel over samples and positions.

    Raises:
        NormInputError: in training mode, one value per channel.

    Source: Lubana, Dick & Tanaka 2021, arXiv 2106.05956.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        z = wide(x)
        _, var = self.moments(z)
        return self.scale_and_shift(z * self.per_channel(torch.rsqrt(var + self.eps), z)).to(x.dtype)


class MeanNorm(RunningNorm):
    """Mean centring: y = x - mean + bias, the mean per channel over samples and positions. Never rescales.

    Raises:
        NormInputError: in training mode, one value per channel.

    Source: mean-only batch normalization, Salimans & Kingma 2016, arXiv 1602.07868, section 3.
    """

    def __init__(self, channels: int, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__(channels, momentum=momentum, affine=affine)
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        z = wide(x)
        mean, _ = self.moments(z)
        return self.scale_and_shift(z - self.per_channel(mean, z)).to(x.dtype)
