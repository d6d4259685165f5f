"""Gaussian mixtures over activations, as pure functions: posteriors, EM, seeding, and the normalizing transform.

Letters: x is [B, C, S], every position of every block a sample in R^C; M = B * S samples; K components with diagonal
covariance; tau [B, K, S] posteriors. Everything is a product of skinny matrices: no (M, K, C) tensor ever exists.

Sources: Kalayeh & Shah 2018, arXiv 1806.02892 (the transform: the mean part of a mixture's Fisher vector); Cappe &
Moulines 2009 (stepwise EM); Arthur & Vassilvitskii 2007 (k-means++). The closed-form backward pass is ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Smallest share of a component in 1 / sqrt(share): a nearly empty one would otherwise get unbounded outputs.
SHARE_FLOOR = 1e-2
#: Share of the batch variance that is added to a component's variance before posteriors are computed.
VAR_FLOOR = 1e-2


class Mixture(NamedTuple):
    """A Gaussian mixture with diagonal covariance."""

    weight: Tensor
    """(K,), sums to 1."""
    mean: Tensor
    """(K, C)."""
    var: Tensor
    """(K, C)."""


class Moments(NamedTuple):
    """Posterior-weighted moments of one batch."""

    mass: Tensor
    """(K,): sum of the posteriors."""
    mean: Tensor
    """(K, C)."""
    var: Tensor
    """(K, C), biased."""

    @property
    def share(self) -> Tensor:
        """Mass / M, (K,) or for posteriors of their own (K, C)."""
        return self.mass / self.mass.sum(0)


def quadratic_form(mixture: Mixture, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The log posterior, up to a constant, as a linear map of (x - centre, (x - centre)^2).

    log r_k = log weight_k - 1/2 sum_c [(x_c - mean_kc)^2 / var_kc + log var_kc]. Centred, because the
    expansion of the square cancels catastrophically for x far from zero.

    Returns:
        The map (K, 2C) and the offsets (K, 1).
    """
    precision = 1 / mixture.var
    mean = mixture.mean - centre
    linear = torch.cat([mean * precision, -0.5 * precision], 1)
    log_norm = (mean.square() * precision + mixture.var.log()).sum(1)
    return linear, (mixture.weight.log() - 0.5 * log_norm).unsqueeze(1)


def floored(mixture: Mixture, eps: float) -> Mixture:
    """The mixture that posteriors are computed from: variances and shares kept away from zero.

    Variances get ``VAR_FLOOR`` of the total variance plus eps: a component that has shrunk onto a few samples would
    otherwise never give them back, and a constant channel has no variance at all. Shares may be (K,) or (K, C).
    """
    share = mixture.weight + SHARE_FLOOR
    weight = mixture.weight.reshape(mixture.mean.shape[0], -1)
    centre = (weight * mixture.mean).sum(0)
    total = (weight * (mixture.var + (mixture.mean - centre).square())).sum(0)
    return Mixture(share / share.sum(0), mixture.mean, mixture.var + (VAR_FLOOR * total + eps))


def log_posterior(mixture: Mixture, centre: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`quadratic_form` of the :func:`floored` mixture, up to a constant over components, in few operations.

    Returns:
        What multiplies x - centre and its square, (K, C) each, and the offsets, (K,).
    """
    weight, mean, var = mixture
    apart = mean - weight @ mean
    total = weight @ torch.addcmul(var, apart, apart)
    var = torch.add(var, total, alpha=VAR_FLOOR).add_(eps)
    precision = var.reciprocal()
    shift = mean - centre
    linear = shift * precision
    log_norm = torch.addcmul(var.log_(), linear, shift).sum(1)
    return linear, precision.mul_(-0.5), torch.sub((weight + SHARE_FLOOR).log_(), log_norm, alpha=0.5)


def posteriors(x: Tensor, mixture: Mixture, temperature: float = 1.0) -> Tensor:
    """Tau [B, K, S]: softmax over components of the log posterior. Differentiable in x; the readable form."""
    centre = mixture.weight @ mixture.mean
    linear, offset = quadratic_form(mixture, centre)
    z = x - centre.unsqueeze(1)
    return torch.softmax((torch.matmul(linear, torch.cat([z, z * z], 1)) + offset) / temperature, 1)


def moments(x: Tensor, tau: Tensor) -> Moments:
    """Mass, mean and biased variance of every component. Differentiable in x and tau; the readable form."""
    mass = tau.sum((0, 2))
    safe = mass.clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(1)
    centre = x.mean((0, 2)).detach()
    z = x - centre.unsqueeze(1)
    first = torch.einsum("bks,bcs->kc", tau, z) / safe
    second = torch.einsum("bks,bcs->kc", tau, z * z) / safe
    return Moments(mass, first + centre, (second - first.square()).clamp_min(0))


def amplitude(share: Tensor, scale: str) -> Tensor:
    """Alpha (K, 1): 1/sqrt(share) for ``fisher``, the paper's, or 1/sqrt(K share) for ``unit``.

    With well separated components the output has standard deviation sqrt(K) under ``fisher`` and 1 under ``unit``.
    """
    safe = share.clamp_min(SHARE_FLOOR if share.numel() > 1 else 0).unsqueeze(1)
    return torch.rsqrt(safe * share.numel() if scale == "unit" else safe)


def transform(x: Tensor, tau: Tensor, mean: Tensor, var: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """Y = sum_k tau_k alpha_k (x - mean_k) / sqrt(var_k + eps), as x * (tau A) - tau B. The readable form."""
    a = alpha * torch.rsqrt(var + eps)
    return x * torch.matmul(a.t(), tau) - torch.matmul((mean * a).t(), tau)


def em_step(x: Tensor, mixture: Mixture, eps: float = 0.0) -> tuple[Mixture, float]:
    """One step of expectation-maximization.

    Args:
        x: (M, C) samples.
        mixture: where to start.
        eps: added to the variances.

    Returns:
        The next mixture, and the mean log-likelihood per sample under the given one.
    """
    rows = x.t().unsqueeze(0)
    centre = x.mean(0)
    linear, offset = quadratic_form(mixture, centre)
    z = rows - centre.unsqueeze(1)
    logits = torch.matmul(linear, torch.cat([z, z * z], 1)) + offset
    m = moments(rows, torch.softmax(logits, 1))
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
    likelihood = float(torch.logsumexp(logits, 1).mean()) - constant
    kept = (m.mass > 0).unsqueeze(1)
    mean = torch.where(kept, m.mean, mixture.mean)
    var = torch.where(kept, m.var + eps, mixture.var)
    return Mixture(m.share, mean, var), likelihood


def seed_mixture(
    x: Tensor, k: int, generator: torch.Generator, *, eps: float = 1e-5, starts: int = 6, steps: int = 10
) -> Mixture:
    """A mixture fitted from nothing: the likeliest of several k-means++ starts, then EM.

    Every start is k-means++, three Lloyd steps and three EM steps. One start alone split one mode and merged the two
    others in 5 of 18 trials on the three contrast laws of ``papers/mixture-normalization``. Values beyond five standard
    deviations of their channel are clipped first, so that no component is spent on a single outlier.

    Args:
        x: (M, C) samples, M at least 1.
        k: number of components.
        generator: source of randomness, on the CPU; the global generators are not touched.
        eps: added to the variances.
        starts: how many starts; a single component needs only one.
        steps: EM steps from the best start.
    """
    centre, std = x.mean(0), x.std(0, correction=0)
    x = torch.minimum(torch.maximum(x, centre - 5 * std), centre + 5 * std)
    tried = [_start(x, k, generator, eps) for _ in range(starts if k > 1 else 1)]
    mixture = max(tried, key=lambda each: each[1])[0]
    for _ in range(steps):
        mixture, _ = em_step(x, floored(mixture, eps))
    return mixture


def _start(x: Tensor, k: int, generator: torch.Generator, eps: float) -> tuple[Mixture, float]:
    """A mixture from k-means++, Lloyd and three EM steps, and its mean log-likelihood before the last of them."""
    centre, total = x.mean(0), x.var(0, correction=0)
    scaled = (x - centre) / torch.sqrt(total + eps)
    label = _nearest(scaled, _plus_plus(scaled, k, generator))
    for _ in range(3):
        centres, counts = _means(scaled, label, k)
        # an emptied cluster starts again at the sample that is served worst
        worst = (scaled - centres[label]).square().sum(1).argmax()
        centres = torch.where(counts.unsqueeze(1) > 0, centres, scaled[worst])
        label = _nearest(scaled, centres)
    hard = torch.nn.functional.one_hot(label, k).to(x.dtype).t().unsqueeze(0)
    first = moments(x.t().unsqueeze(0), hard)
    present = (first.mass > 0).unsqueeze(1)
    mixture = Mixture(first.share, torch.where(present, first.mean, centre), torch.where(present, first.var, total))
    likelihood = -math.inf
    for _ in range(3):
        mixture, likelihood = em_step(x, floored(mixture, eps))
    return mixture, likelihood


def _plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: every further centre is drawn with probability proportional to its squared distance."""
    first = torch.randint(x.shape[0], (1,), generator=generator).to(x.device)
    centres = x[first]
    distance = (x - centres).square().sum(1)
    for _ in range(1, k):
        # all distances are zero if there are fewer distinct samples than centres: then any sample will do
        odds = distance.clamp_min(torch.finfo(x.dtype).tiny).double().cpu()
        chosen = torch.multinomial(odds / odds.sum(), 1, generator=generator).to(x.device)
        centres = torch.cat([centres, x[chosen]])
        distance = torch.minimum(distance, (x - x[chosen]).square().sum(1))
    return centres


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * x @ centres.t()).argmin(1)


def _means(x: Tensor, label: Tensor, k: int) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(label, minlength=k).to(x.dtype)
    sums = torch.zeros(k, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, label, x)
    return sums / counts.clamp_min(1).unsqueeze(1), counts
