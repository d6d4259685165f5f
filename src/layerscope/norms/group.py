"""Per-sample statistics on torch's own kernels: layer, instance and group normalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.norms.base import ChannelNorm, NormInputError, require_several
from layerscope.norms.grouping import resolve_group_size

_REMEDY = "use a larger group, a norm with batch statistics, or keep larger maps"


class GroupNorm(ChannelNorm):
    """Group normalization: (x - mean) / sqrt(var + eps) per sample and group of channels, then a per-channel affine.

    Statistics run over the group's channels and all positions of one sample. In tokens [N, S, C] every token is
    normalized by itself, as layer normalization does it in transformers. Biased variance, as in torch.

    Args:
        channels: number of channels C.
        size: channels a group; give exactly one of ``size`` and ``groups``.
        groups: number of groups.
        eps: added to the variance.
        affine: learn a weight and bias per channel.
        unbiased: divide by m - 1 instead of m (m = numbers in one group). The code published with arXiv 2106.05956
            does so; its output is ours times sqrt((m - 1) / m).

    Raises:
        SpecError: both or none of ``size`` and ``groups``, or the channels do not divide.
        NormInputError: a group of a single number, such as size 1 on 1x1 maps.

    Source: Wu & He 2018, arXiv 1803.08494.
    """

    def __init__(
        self,
        channels: int,
        size: int | None = None,
        groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        unbiased: bool = False,
    ) -> None:
        super().__init__(channels, eps=eps, affine=affine)
        self.group_size = resolve_group_size(channels, size=size, groups=groups)
        self.groups = channels // self.group_size
        self.unbiased = unbiased

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        tokens = x.ndim == 3
        rows = x.flatten(0, 1) if tokens else x
        count = self.group_size * math.prod(rows.shape[2:])
        require_several(count, self.label, "one group of one sample", _REMEDY)
        if self.unbiased:
            y = self._unbiased(rows, count)
        else:
            y = F.group_norm(rows, self.groups, self.weight, self.bias, self.eps).to(x.dtype)
        return y.view_as(x) if tokens else y

    def _unbiased(self, x: Tensor, count: int) -> Tensor:
        # var_unbiased + eps = m/(m-1) (var + eps (m-1)/m): torch's kernel with a smaller eps, then a constant factor
        shrink = (count - 1) / count
        y = F.group_norm(x, self.groups, None, None, self.eps * shrink) * math.sqrt(shrink)
        return self.scale_and_shift(y).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.channels}, size={self.group_size}, groups={self.groups}, eps={self.eps}"


class LayerNorm(GroupNorm):
    """Layer normalization with a per-channel affine map: one mean and variance per sample over all C, H, W.

    The convolutional form of Ba, Kiros & Hinton 2016 (arXiv 1607.06450): GroupNorm with one group. It differs from
    ``torch.nn.LayerNorm((C, H, W))``, whose affine map has one entry per element. On [N, C] and tokens it is
    ``torch.nn.LayerNorm(C)``.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, groups=1, eps=eps, affine=affine)


class InstanceNorm(ChannelNorm):
    """Instance normalization: one mean and variance per sample and channel over the positions, no running statistics.

    The same function as GroupNorm with one channel a group on maps; on tokens [N, S, C] the statistics run over S.

    Raises:
        NormInputError: fewer than two positions: the output would be the bias, whatever the input.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        if x.ndim == 2:
            raise NormInputError(
                f"{self.label} needs positions to average over: maps [N, C, H, W] or tokens [N, S, C], "
                f"got {tuple(x.shape)}; for vectors use layer, group or batch"
            )
        require_several(math.prod(x.shape[a] for a in self.position_axes(x)), self.label, "the positions", _REMEDY)
        maps = x.transpose(1, 2) if x.ndim == 3 else x
        y = F.group_norm(maps, self.channels, self.weight, self.bias, self.eps).to(x.dtype)
        return torch.transpose(y, 1, 2) if x.ndim == 3 else y
