"""EvoNorm: normalization and activation found as one layer. Liu et al. 2020, arXiv 2004.02967."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from layerscope.norms.base import ChannelNorm, require_several, wide
from layerscope.norms.grouping import resolve_group_size
from layerscope.norms.running import RunningNorm


class EvoNormB0(RunningNorm):
    """y = weight * x / max(sqrt(var_batch + eps), v x + sqrt(var_instance + eps)) + bias; no activation follows.

    The batch variance (per channel, biased) is a running one in evaluation mode; the instance variance (per sample and
    channel over positions, biased) is always that of the input, and 0 where there is a single position.

    Args:
        channels: number of channels C.
        eps: added to both variances.
        momentum: weight of the newest batch in the running variance.
        unbiased: divide the instance variance by S - 1, as the code published with arXiv 2106.05956 does.

    Raises:
        NormInputError: in training mode, one value per channel; with ``unbiased``, one position.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1, unbiased: bool = False) -> None:
        super().__init__(channels, eps, momentum)
        self.unbiased = unbiased
        self.v = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        z = wide(x)
        _, var = self.moments(z)
        batch = self.per_channel(torch.sqrt(var + self.eps), z)
        instance = self.per_channel(self.v, z) * z + self._instance_deviation(z)
        return self.scale_and_shift(z / torch.maximum(batch, instance)).to(x.dtype)

    def _instance_deviation(self, z: Tensor) -> Tensor:
        axes = self.position_axes(z)
        count = math.prod(z.shape[a] for a in axes)
        if self.unbiased:
            require_several(count, self.label, "the positions", "use unbiased=false or larger maps")
        if count < 2:
            return torch.full_like(z, math.sqrt(self.eps))
        return torch.sqrt(z.var(axes, correction=int(self.unbiased), keepdim=True) + self.eps)


class EvoNormS0(ChannelNorm):
    """y = weight * x sigmoid(v x) / sqrt(var_group + eps) + bias; no activation follows, no batch statistics.

    The variance is that of group normalization: per sample over the channels of a group and all positions (per token
    in tokens [N, S, C]).

    Args:
        channels: number of channels C.
        size: channels a group.
        groups: number of groups. With neither given: 32 groups as in the paper, or one per channel below 32 channels.
        eps: added to the variance.
        unbiased: divide by m - 1, as the code published with arXiv 2106.05956 does.

    Raises:
        SpecError: the channels do not divide.
        NormInputError: a group of a single number.
    """

    def __init__(
        self,
        channels: int,
        size: int | None = None,
        groups: int | None = None,
        eps: float = 1e-5,
        unbiased: bool = False,
    ) -> None:
        super().__init__(channels, eps=eps)
        if size is None and groups is None:
            groups = min(32, channels)
        self.group_size = resolve_group_size(channels, size=size, groups=groups, name="evonorm-s0")
        self.unbiased = unbiased
        self.v = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        z = wide(x)
        rows = z.flatten(0, 1) if x.ndim == 3 else z
        grouped = rows.reshape(rows.shape[0], self.channels // self.group_size, -1)
        require_several(grouped.shape[2], self.label, "one group of one sample", "use a larger group or larger maps")
        scale = torch.rsqrt(grouped.var(2, correction=int(self.unbiased), keepdim=True) + self.eps)
        gated = z * torch.sigmoid(self.per_channel(self.v, z) * z)
        y = (gated.reshape(grouped.shape) * scale).view_as(z)
        return self.scale_and_shift(y).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.channels}, size={self.group_size}, eps={self.eps}"


def evonorm_b0(
    channels: int,
    base: Callable[[], nn.Module],
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    unbiased: bool = False,
) -> EvoNormB0:
    """EvoNorm-B0 in the activation slot, in place of ``base``."""
    return EvoNormB0(channels, eps, momentum, unbiased)


def evonorm_s0(
    channels: int,
    base: Callable[[], nn.Module],
    size: int | None = None,
    groups: int | None = None,
    eps: float = 1e-5,
    unbiased: bool = False,
) -> EvoNormS0:
    """EvoNorm-S0 in the activation slot, in place of ``base``."""
    return EvoNormS0(channels, size, groups, eps, unbiased)
