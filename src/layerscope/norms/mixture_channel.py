"""Mixture normalization with one 1-D mixture per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.norms.mixture import MixtureNorm
from layerscope.norms.mixture_kernel import rows, unrows
from layerscope.norms.mixture_math import SHARE_FLOOR, Mixture, Moments, floored
from layerscope.norms.mixture_state import to_dtype


class ChannelMixtureNorm(MixtureNorm):
    """Mixture normalization whose posteriors are independent between channels: K one-dimensional Gaussians each.

    Posteriors stay soft without a temperature, because no sum over channels sharpens them. The price is memory and
    time: K numbers per activation instead of K per position, and plain autograd. Shares, means and variances all have
    shape (K, C). Statistics are those of one process.

    Args:
        channels: number of channels C.
        k: number of components K.
        temperature: divides the log posterior.
        scale: ``fisher`` or ``unit``, as in :class:`MixtureNorm`.
        momentum: as in :class:`MixtureNorm`.
        eps: added to the variances.
        seed: unused; seeding by quantiles draws no random numbers.
    """

    def __init__(
        self,
        channels: int,
        k: int = 3,
        temperature: float = 1.0,
        scale: str = "fisher",
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, k, temperature, scale, momentum, eps, grad_posterior=True, seed=seed)

    def _shares(self) -> Tensor:
        return torch.full((self.k, self.channels), 1 / self.k)

    def _train(self, z: Tensor) -> Tensor:
        self._require_batch(z)
        x = rows(z)
        mixture = floored(to_dtype(self._mixture_of_this_pass(), z), self.eps)
        with torch.no_grad():
            tau = channel_posteriors(x, mixture, self.temperature)
            sharp = tau if self.temperature == 1 else channel_posteriors(x, mixture)
            batch_of_em = channel_moments(x, sharp)
        batch = channel_moments(x, tau)
        self._require_finite(batch.var.detach().sum())
        self._track(Moments(*(t.detach() for t in batch)), batch_of_em)
        return self._finish(z, x, tau, Mixture(batch.share, batch.mean, batch.var))

    def _evaluate(self, z: Tensor) -> Tensor:
        x = rows(z)
        with torch.no_grad():
            tau = channel_posteriors(x, floored(to_dtype(self.mixture, z), self.eps), self.temperature)
        return self._finish(z, x, tau, to_dtype(self.running, z))

    def _finish(self, z: Tensor, x: Tensor, tau: Tensor, m: Mixture) -> Tensor:
        share = m.weight.clamp_min(SHARE_FLOOR if self.k > 1 else 0)
        alpha = torch.rsqrt(share * (self.k if self.scale == "unit" else 1))
        a = alpha * torch.rsqrt(m.var + self.eps)
        y = x * (tau * _wide(a)).sum(0) - (tau * _wide(a * m.mean)).sum(0)
        return self.scale_and_shift(unrows(y, z))

    def _fit(self, samples: Tensor, generator: torch.Generator) -> Mixture:
        levels = (torch.arange(self.k, dtype=samples.dtype, device=samples.device) + 0.5) / self.k
        centres = torch.quantile(samples, levels, dim=0)
        total = samples.var(0, correction=0)
        mixture = Mixture(self._shares().to(samples), centres, (total / self.k**2).expand_as(centres))
        x = samples.t().unsqueeze(0)
        for _ in range(10):
            m = channel_moments(x, channel_posteriors(x, floored(mixture, self.eps)))
            mixture = Mixture(m.share, m.mean, m.var)
        return mixture


def channel_posteriors(x: Tensor, mixture: Mixture, temperature: float = 1.0) -> Tensor:
    """Tau [K, B, C, S] of the 1-D mixtures with shares, means and variances (K, C)."""
    square = (x - _wide(mixture.mean)).square() / _wide(mixture.var)
    logits = _wide(mixture.weight.log() - 0.5 * mixture.var.log()) - 0.5 * square
    return torch.softmax(logits / temperature, 0)


def channel_moments(x: Tensor, tau: Tensor) -> Moments:
    """Mass, mean and biased variance (K, C) of [B, C, S] under posteriors [K, B, C, S]."""
    mass = tau.sum((1, 3))
    safe = mass.clamp_min(torch.finfo(x.dtype).tiny)
    mean = (tau * x).sum((1, 3)) / safe
    return Moments(mass, mean, (tau * (x - _wide(mean)).square()).sum((1, 3)) / safe)


def _wide(table: Tensor) -> Tensor:
    """(K, C) shaped to broadcast against [K, B, C, S]."""
    return table[:, None, :, None]
