"""Variance, second moment and standard deviation of activations from two small tables.

For activations x[n, c, s] (N samples, C channels, S positions) two reduced tables hold all that is needed::

    sums[n, c]  = sum_s x[n, c, s]            norms[n, c] = sqrt(sum_s x[n, c, s]^2)

Their margins give the statistics of every activation-based normalizer: batch norm (over N and S), layer norm
(over C and S), group norm (over a group and S) and instance norm (over S), without another look at x.
All functions accept tables with leading axes, ``[..., N, C]``, and compute in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Over = Literal["batch", "layer", "instance"]


@dataclass(frozen=True)
class Tables:
    """What remains of activations x[n, c, s] after reducing over the S positions."""

    sums: Tensor
    """[..., N, C]: sum over positions."""
    norms: Tensor
    """[..., N, C]: Euclidean norm over positions."""
    positions: int
    """S: number of positions each entry was reduced over."""

    @property
    def squares(self) -> Tensor:
        """[..., N, C] float64: sum of squares over positions."""
        return self.norms.double().square()


def tables(x: Tensor, *, channel_axis: int = 1) -> Tables:
    """The two tables of ``x``.

    Args:
        x: activations, samples first: [N, C], [N, C, ...] or, with ``channel_axis=-1``, [N, ..., C]. Any float dtype;
            half precision is reduced in float32.
        channel_axis: where the channels are.
    """
    if x.ndim < 2:
        raise ValueError(f"activations need a sample and a channel axis, got shape {tuple(x.shape)}")
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    by_channel = wide.movedim(channel_axis, 1).flatten(2) if x.ndim > 2 else wide.unsqueeze(2)
    return Tables(by_channel.sum(2), torch.linalg.vector_norm(by_channel, dim=2), by_channel.shape[2])


def channel_moments(t: Tables) -> tuple[Tensor, Tensor, int]:
    """Mean and second moment of every channel over samples and positions, and the count N * S behind them.

    Returns:
        ``(mean [..., C], second_moment [..., C], count)`` in float64.
    """
    count = t.sums.shape[-2] * t.positions
    return t.sums.double().sum(-2) / count, t.squares.sum(-2) / count, count


def activation_variance(t: Tables) -> Tensor:
    """Mean over channels of the unbiased variance over samples and positions. Shape [...]; NaN for a count of one.

    Source: Lubana et al. 2021 (arXiv 2106.05956), the activation variance of the forward-propagation probe.
    """
    mean, second, count = channel_moments(t)
    return unbiased_variance(mean, second, count).mean(-1)


def preactivation_std(t: Tables) -> Tensor:
    """Mean over channels of the unbiased standard deviation over samples and positions. Shape [...]."""
    mean, second, count = channel_moments(t)
    return unbiased_variance(mean, second, count).sqrt().mean(-1)


def second_moment(t: Tables) -> Tensor:
    """Second moment ms = mean of x^2 over everything. Shape [...].

    In a residual stream this, not the variance, grows by about one per block whatever the normalizer.
    """
    _, second, _ = channel_moments(t)
    return second.mean(-1)


def mean_value(t: Tables) -> Tensor:
    """Mean of x over everything. Shape [...]."""
    mean, _, _ = channel_moments(t)
    return mean.mean(-1)


def unbiased_variance(mean: Tensor, second: Tensor, count: int | Tensor) -> Tensor:
    """(E[x^2] - E[x]^2) * count / (count - 1), never below zero; NaN where ``count`` is one."""
    biased = (second - mean.square()).clamp_min(0)
    if isinstance(count, Tensor):
        return torch.where(count > 1, biased * (count / (count - 1)), torch.nan)
    return biased * (count / (count - 1) if count > 1 else torch.nan)


def cancellation(t: Tables) -> Tensor:
    """Largest mean^2 / variance over channels: how many digits ``E[x^2] - E[x]^2`` loses. Shape [...].

    Tables reduced in float32 carry a relative error near 1e-7, so the variance is good to about 1e-7 times this.
    Above 1e6, up to infinite, where a channel is constant but not zero.
    """
    mean, second, count = channel_moments(t)
    return cancellation_of(mean, second, count)


def cancellation_of(mean: Tensor, second: Tensor, count: int) -> Tensor:
    """:func:`cancellation` from channel moments."""
    variance = unbiased_variance(mean, second, count)
    ratio = mean.square() / variance
    return torch.where(mean == 0, torch.zeros_like(ratio), ratio).amax(-1)


def batch_normalized(t: Tables, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tables:
    """The tables of batch norm's output, from the tables of its input.

    y = a_c x + b_c with a = weight / sqrt(var + eps), b = bias - a mean, so that sums and squares follow without
    another look at x. Channel statistics are taken in float64, the result has the tables' dtype.

    Args:
        t: tables [..., N, C] of the input.
        weight: [..., C], or None for ones.
        bias: [..., C], or None for zeros.
        eps: as in the layer.
    """
    wide = torch.float64
    squares = t.norms * t.norms
    count = t.sums.shape[-2] * t.positions
    mean = t.sums.sum(-2, dtype=wide) / count
    variance = (squares.sum(-2, dtype=wide) / count - mean.square()).clamp_min(0)
    a = (variance + eps).rsqrt() if weight is None else weight.double() * (variance + eps).rsqrt()
    b = -a * mean if bias is None else bias.double() - a * mean
    a, b = a.unsqueeze(-2).to(t.sums.dtype), b.unsqueeze(-2).to(t.sums.dtype)
    squares.mul_(a * a).addcmul_(t.sums, 2 * a * b).add_(t.positions * b * b)
    return Tables((a * t.sums).add_(t.positions * b), squares.clamp_min_(0).sqrt_(), t.positions)


def normalizer_statistics(t: Tables, over: Over | int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance that a normalizer would use on these activations.

    Args:
        t: tables [..., N, C].
        over: ``"batch"`` (per channel, shape [..., C]), ``"layer"`` (per sample, [..., N]), ``"instance"``
            (per sample and channel, [..., N, C]) or the group size as an integer ([..., N, C / size]).

    Raises:
        ValueError: the channels cannot be divided into groups of that size.
    """
    sums, squares = t.sums.double(), t.squares
    *lead, n, c = sums.shape
    if over == "batch":
        sums, squares, count = sums.sum(-2), squares.sum(-2), n * t.positions
    elif over == "layer":
        sums, squares, count = sums.sum(-1), squares.sum(-1), c * t.positions
    elif over == "instance":
        count = t.positions
    elif isinstance(over, int) and over > 0 and c % over == 0:
        grouped = (*lead, n, c // over, over)
        sums, squares, count = sums.reshape(grouped).sum(-1), squares.reshape(grouped).sum(-1), over * t.positions
    else:
        raise ValueError(
            f"{c} channels cannot be normalized over {over!r}: batch, layer, instance or a size dividing {c}"
        )
    mean = sums / count
    return mean, (squares / count - mean.square()).clamp_min(0)
