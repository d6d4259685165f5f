"""What all layers here share: where the channels are, how wide statistics are, and what cannot be normalized.

Axis letters: N samples, C channels, S positions. Inputs are vectors [N, C], tokens [N, S, C] or maps [N, C, *].
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from layerscope.errors import LayerscopeError


class NormInputError(LayerscopeError, ValueError):
    """An input that a normalization layer has no statistics for; says what was expected and what to do."""


def channel_axis(x: Tensor, channels: int, layer: str) -> int:
    """Axis of the channels: 1, or the last one for tokens [N, S, C].

    Raises:
        NormInputError: integer input, fewer than two axes, or another number of channels.
    """
    if not x.is_floating_point():
        raise NormInputError(f"{layer} needs a floating-point input, got {x.dtype}: call .float() on it first")
    if x.ndim < 2:
        raise NormInputError(f"{layer} takes [N, C], [N, S, C] or [N, C, H, W], got shape {tuple(x.shape)}")
    axis = x.ndim - 1 if x.ndim == 3 else 1
    if x.shape[axis] != channels:
        raise NormInputError(
            f"{layer} was built for {channels} channels but got {x.shape[axis]}: input shape {tuple(x.shape)}, "
            f"channels on axis {axis}"
        )
    return axis


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 or wider: statistics of half-precision activations lose most of their digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of ``x``. Torch's own context manager is slow, and knows no meta device."""
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def require_several(count: int, layer: str, over: str, remedy: str) -> None:
    """Refuse a statistic over fewer than two numbers: the output would be zero, or NaN, whatever the input.

    Raises:
        NormInputError: ``count`` is below 2.
    """
    if count < 2:
        raise NormInputError(
            f"{layer} cannot normalize: its statistics run over {over}, here {count} value(s), "
            f"so the output would not depend on the input; {remedy}"
        )


class ChannelNorm(nn.Module):
    """Base of the layers here: a channel count, an optional per-channel affine map, and the layout rules.

    ``weight`` and ``bias`` have shape (C,), as in torch's own layers, or are None without an affine map.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine and bias else None

    @property
    def label(self) -> str:
        """Class name and channels, as messages name the layer."""
        return f"{type(self).__name__}({self.channels})"

    def axis(self, x: Tensor) -> int:
        """Axis of the channels in ``x``; see :func:`channel_axis`."""
        return channel_axis(x, self.channels, self.label)

    def position_axes(self, x: Tensor) -> tuple[int, ...]:
        """Axes of the positions: none for [N, C], 1 for tokens, 2... for maps."""
        return (1,) if x.ndim == 3 else tuple(range(2, x.ndim))

    def per_channel(self, p: Tensor, x: Tensor) -> Tensor:
        """``p`` of shape (C,) shaped to broadcast against ``x``."""
        return p if x.ndim == 3 else p.view(1, -1, *[1] * (x.ndim - 2))

    def scale_and_shift(self, y: Tensor) -> Tensor:
        """The per-channel affine map: weight * y + bias."""
        if self.weight is not None:
            y = y * self.per_channel(self.weight, y)
        if self.bias is not None:
            y = y + self.per_channel(self.bias, y)
        return y

    def reset_parameters(self) -> None:
        """Weight one, bias zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.channels}, eps={self.eps}, affine={self.weight is not None}"


class ChannelsFirst1d(nn.Module):
    """A layer of this package for sequences [N, C, L], which it would otherwise read as tokens [N, S, C].

    The sequence is handed on as a map of width one; inputs of other ranks pass unchanged.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, L], or anything the layer takes, to the same shape."""
        y: Tensor = self.layer(x.unsqueeze(-1)).squeeze(-1) if x.ndim == 3 else self.layer(x)
        return y
