"""One spec, ``mixture:posterior=...``, for the three kinds of posterior."""

from __future__ import annotations

from layerscope.errors import SpecError
from layerscope.norms.base import ChannelNorm
from layerscope.norms.mixture import MixtureNorm
from layerscope.norms.mixture_channel import ChannelMixtureNorm
from layerscope.norms.mode import ModeNorm


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
