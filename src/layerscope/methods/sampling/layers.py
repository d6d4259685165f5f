"""Sampling layers: a weight direction, a learned magnitude, and noise that is always on."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import did_you_mean
from layerscope.methods.sampling import functional as S
from layerscope.methods.sampling.errors import SamplingError, SamplingWarning
from layerscope.methods.sampling.functional import Mode
from layerscope.methods.sampling.noises import Noise
from layerscope.methods.sampling.unit import SamplingLayer, Variance

BetaShape = Literal["channel", "location"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")


class SamplingLinear(SamplingLayer):
    """A fully connected layer of sampling units: [N, ..., I] of -1 and +1 -> [N, ..., O] of -1 and +1.

    Args:
        in_features: inputs I.
        out_features: units O.
        bias: learn c, a bias inside erf.
        noise: ``bernoulli:p=0.5``, ``gaussian:std=1`` or a :class:`Noise`; matters for ``connection``, ``unit`` and
            the export only.
        mode: forward mode, see :class:`SamplingLayer`.
        variance: ``norm``, or ``exact`` for inputs that are not of magnitude 1.

    Raises:
        SamplingError: a size below 1, p outside (0, 1), an unknown mode.

    Source: arXiv 1910.12316.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        noise: str | Noise = "bernoulli:p=0.5",
        mode: Mode = "marginal",
        variance: Variance = "norm",
    ) -> None:
        super().__init__()
        _positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.beta = nn.Parameter(torch.empty(out_features))
        self.c = nn.Parameter(torch.empty(out_features))
        self._set_up(in_features, bias, noise, mode, variance)
        if self.variance == "border":
            raise SamplingError("a linear layer has no border: use variance='norm' or 'exact'")
        self.reset_parameters()

    def _product(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.linear(z, weight)

    def _by_norm(self, z: Tensor) -> Tensor:
        return S.linear_by_norm(z, self.weight, self.beta, self.bias())

    def mean_input(self, z: Tensor) -> Tensor:
        """Mean of the inputs over everything but their features, [I]."""
        return z.reshape(-1, self.in_features).mean(0)

    def _row_times(self, channels: Tensor) -> Tensor:
        return F.linear(channels, self.weight)

    def _connections(self, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return z.reshape(1, -1, 1, self.in_features), weight

    def _fits(self, z: Tensor) -> str | None:
        return None if z.ndim and z.shape[-1] == self.in_features else f"[N, ..., {self.in_features}]"

    def _from_connections(self, u: Tensor, p: Tensor) -> Tensor:
        return u.reshape(p.shape)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.in_features}, {self.out_features}, noise={self.noise.name}, mode={self.mode}"


class SamplingConv2d(SamplingLayer):
    """A convolution of sampling units: [N, I, H, W] of -1 and +1 -> [N, O, H', W'] of -1 and +1.

    Args:
        in_channels: input channels I.
        out_channels: units O per position.
        kernel_size: side of the kernel.
        stride: step.
        padding: rows and columns put around the map, ``same`` or ``valid``. Over zeros a unit sees fewer taps: its
            noise is smaller there.
        dilation: distance of the taps.
        groups: groups of channels.
        bias: learn c, a bias inside erf, per channel.
        padding_mode: what is put around the map: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        noise: see :class:`SamplingLinear`.
        mode: forward mode, see :class:`SamplingLayer`.
        variance: by default ``border`` where zeros are padded and ``norm`` elsewhere; ``exact`` for inputs not of
            magnitude 1.
        beta_shape: one magnitude per ``channel``, or per ``location``, which needs ``out_size`` and gives up
            translation equivariance (the released code does so).
        out_size: (H', W') of the output, for ``beta_shape="location"``.

    Raises:
        SamplingError: a size below 1, groups that do not divide, a location without ``out_size``, an unknown padding.

    Source: arXiv 1910.12316.
    """

    _unit_shape = (-1, 1, 1)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        noise: str | Noise = "bernoulli:p=0.5",
        mode: Mode = "marginal",
        variance: Variance | None = None,
        beta_shape: BetaShape = "channel",
        out_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        _positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise SamplingError(f"groups={groups} does not divide {in_channels} -> {out_channels} channels")
        if beta_shape not in ("channel", "location"):
            raise SamplingError(f"no beta_shape {beta_shape!r}; {did_you_mean(beta_shape, ('channel', 'location'))}")
        if (beta_shape == "location") != (out_size is not None):
            raise SamplingError("one magnitude per location needs out_size=(height, width), and nothing else takes it")
        if padding_mode not in PADDING_MODES:
            raise SamplingError(f"no padding_mode {padding_mode!r}; {did_you_mean(padding_mode, PADDING_MODES)}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        _positive(kernel_size=min(self.kernel_size), stride=min(self.stride), dilation=min(self.dilation))
        self.padding, self.padding_mode, self.out_size = padding, padding_mode, out_size
        self._margins = self._around(padding)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.beta = nn.Parameter(torch.empty(out_channels, *(out_size or ())))
        self.c = nn.Parameter(torch.empty(out_channels))
        over_zeros = padding_mode == "zeros" and any(self._margins)
        if variance == "norm" and over_zeros:
            warnings.warn(
                "SamplingConv2d with padding and variance='norm': units at the border see fewer taps, and their true "
                "probability is further from 1/2 than the stated law says; use  variance='border'",
                SamplingWarning,
                stacklevel=2,
            )
        fan_in = self.weight[0].numel()
        self._set_up(fan_in, bias, noise, mode, variance or ("border" if over_zeros else "norm"))
        self.reset_parameters()

    def _around(self, padding: int | tuple[int, int] | str) -> tuple[int, int, int, int]:
        """Left, right, top and bottom margin."""
        if padding == "valid":
            return 0, 0, 0, 0
        if padding == "same":
            if self.stride != (1, 1):
                raise SamplingError(f"padding='same' needs stride 1, got {self.stride}")
            (top, bottom), (left, right) = (
                (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
                for d, k in zip(self.dilation, self.kernel_size, strict=True)
            )
            return left, right, top, bottom
        if isinstance(padding, str):
            raise SamplingError(f"no padding {padding!r}; {did_you_mean(padding, ('same', 'valid'))}")
        y, x = _pair(padding)
        if min(y, x) < 0:
            raise SamplingError(f"padding must not be negative, got {padding}")
        return x, x, y, y

    def _padded(self, z: Tensor) -> Tensor:
        if not any(self._margins):
            return z
        return F.pad(z, self._margins, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _product(self, z: Tensor, weight: Tensor) -> Tensor:
        left, right, top, bottom = self._margins
        if self.padding_mode == "zeros" and left == right and top == bottom:  # the kernel pads by itself
            return F.conv2d(z, weight, None, self.stride, (top, left), self.dilation, self.groups)
        return F.conv2d(self._padded(z), weight, None, self.stride, 0, self.dilation, self.groups)

    def mean_input(self, z: Tensor) -> Tensor:
        """Mean of the inputs over examples and positions, [I]."""
        return z.transpose(-3, -1).reshape(-1, self.in_channels).mean(0)

    def _row_times(self, channels: Tensor) -> Tensor:
        per_channel = self.weight.sum((2, 3)).view(self.groups, -1, self.in_channels // self.groups)
        return (per_channel * channels.view(self.groups, 1, -1)).sum(2).flatten()

    def _connections(self, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        taps = F.unfold(self._padded(z), self.kernel_size, self.dilation, 0, self.stride)  # [1, I * k, L]
        per_group = taps.reshape(1, self.groups, -1, taps.shape[-1]).permute(0, 3, 1, 2)  # [1, L, groups, taps]
        inputs = per_group.repeat_interleave(self.out_channels // self.groups, 2)  # [1, L, O, taps]
        return inputs, weight.flatten(1)

    def _from_connections(self, u: Tensor, p: Tensor) -> Tensor:
        return u.transpose(1, 2).reshape(p.shape)

    def _fits(self, z: Tensor) -> str | None:
        if z.ndim != 4 or z.shape[1] != self.in_channels:
            return f"[N, {self.in_channels}, H, W]"
        if self.out_size is None:
            return None
        size = tuple(
            (n + sum(self._margins[2 - 2 * a : 4 - 2 * a]) - self.dilation[a] * (self.kernel_size[a] - 1) - 1)
            // self.stride[a] + 1
            for a, n in enumerate(z.shape[2:])
        )  # fmt: skip
        return None if size == self.out_size else f"that give maps of {self.out_size} (this one gives {size})"

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, variance={self.variance}, noise={self.noise.name}, mode={self.mode}"
        )


class Binarize(nn.Module):
    """z = +1 where x >= threshold, else -1: the door of a sampling network. Same shape; integers become floats.

    A NaN stays one.

    Backward, the gradient passes where |x - threshold| <= 1 (the usual straight-through window); it matters only where
    something trainable stands before.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not x.is_floating_point():  # such as bytes, which hold no -1
            x = x.to(torch.get_default_dtype())
        centred = x - self.threshold
        hard = (centred >= 0).to(x.dtype).mul_(2).sub_(1).masked_fill_(x.isnan(), torch.nan)
        if not x.requires_grad:
            return hard
        window = centred.clamp(-1, 1)
        return (window - window.detach()) + hard  # in this order the value is exactly -1 or +1

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"threshold={self.threshold:g}"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise SamplingError(f"a convolution over two axes takes one number or two, got {tuple(value)}")
    return value[0], value[1]


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise SamplingError(f"{name} must be at least 1, got {value}")
