"""Mixture normalization under torch's class names, and one spec for the three kinds of posterior."""

from __future__ import annotations

from torch import Tensor

from layerscope.errors import SpecError
from layerscope.norms.base import ChannelNorm, NormInputError
from layerscope.norms.mixture import MixtureNorm
from layerscope.norms.mixture_channel import ChannelMixtureNorm
from layerscope.norms.mode import ModeNorm


class MixtureNorm1d(MixtureNorm):
    """Mixture normalization in place of ``nn.BatchNorm1d``: vectors [N, C] or sequences [N, C, L]."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] or [N, C, L] to the same shape."""
        _require_rank(self, x, (2, 3), "[N, C] or [N, C, L]")
        return super().forward(x.unsqueeze(-1)).squeeze(-1) if x.ndim == 3 else super().forward(x)


class MixtureNorm2d(MixtureNorm):
    """Mixture normalization in place of ``nn.BatchNorm2d``: maps [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        _require_rank(self, x, (4,), "[N, C, H, W]")
        return super().forward(x)


class MixtureNorm3d(MixtureNorm):
    """Mixture normalization in place of ``nn.BatchNorm3d``: volumes [N, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, D, H, W] to the same shape."""
        _require_rank(self, x, (5,), "[N, C, D, H, W]")
        return super().forward(x)


def _require_rank(layer: MixtureNorm, x: Tensor, ranks: tuple[int, ...], shape: str) -> None:
    if x.ndim not in ranks:
        raise NormInputError(f"{layer.label} takes {shape}, got {tuple(x.shape)}")


def mixture_norm(
    channels: int,
    k: int = 3,
    posterior: str = "joint",
    temperature: str = "channels",
    scale: str = "fisher",
    momentum: float = 0.1,
    eps: float = 1e-5,
    seed: int = 0,
) -> ChannelNorm:
    """Mixture normalization with posteriors per position (joint), per channel, or per image (mode normalization).

    Under ``channel`` the temperature ``channels`` means 1, since the mixtures are one-dimensional.

    Raises:
        SpecError: a temperature or scale together with posterior=sample, whose gate has neither.
    """
    if posterior == "sample":
        if (temperature, scale) != ("channels", "fisher"):
            raise SpecError("mixture:posterior=sample is Mode Normalization: its gate has no temperature and no scale")
        return ModeNorm(channels, k, momentum, eps, seed)
    if posterior == "channel":
        soft = 1.0 if temperature == "channels" else _number(temperature)
        return ChannelMixtureNorm(channels, k, soft, scale, momentum, eps, seed)
    return MixtureNorm(channels, k, temperature, scale, momentum, eps, seed=seed)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"mixture: temperature must be 'channels' or a number, not {text!r}") from None
