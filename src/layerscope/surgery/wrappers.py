"""The small modules that surgery puts around a norm, so that it fits where the old layer stood.

The norms of this package read [N, C], tokens [N, S, C] and maps [N, C, H, W]; what stood in a network may have seen
its channels elsewhere.
"""

from __future__ import annotations

import torch
from torch import nn


class NormAct(nn.Module):
    """norm, then drop, then activation: what a fused norm+activation class becomes. Shape in = shape out.

    The drop and activation are the old module's own objects: nothing of them is lost.
    """

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, drop, activate."""
        out: torch.Tensor = self.act(self.drop(self.norm(x)))
        return out


class ChannelsLast(nn.Module):
    """A norm applied to [N, ..., C], channels last (tokens, ConvNeXt and Swin blocks), as to tokens [N, S, C].

    Stands where a ``LayerNorm(C)`` stood. A group norm here is taken per token; a batch norm over samples and tokens.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    @property
    def eps(self) -> float:
        """NaN on purpose: ``nn.TransformerEncoderLayer`` skips its fused path, which would bypass this module."""
        return float("nan")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ..., C] -> [N, ..., C]."""
        tokens = x.flatten(1, -2) if x.ndim > 3 else x
        out: torch.Tensor = self.norm(tokens)
        return out.reshape(x.shape)


class Keep(nn.Module):
    """The identity, as a new tensor: an in-place activation after it cannot overwrite what a skip path still reads.

    Taking a norm away from ``norm -> ReLU(inplace=True)`` would otherwise rectify the residual stream itself.
    """

    @property
    def eps(self) -> float:
        """NaN on purpose, as in :class:`ChannelsLast`."""
        return float("nan")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A copy of x."""
        return x.clone()
