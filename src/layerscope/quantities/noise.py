"""nu: how much of a sample's representation comes from the company it keeps in the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_noise(z: Tensor) -> Tensor:
    """Batch-noise ratio nu = E_x[ Var_batch z(x) ] / Var_x( E_batch z(x) ), summed over features.

    Unbiased (one-way random effects): the variance that companions leave in the K-draw mean is taken off the
    denominator.

    Args:
        z: readouts [K, N, D] of N anchor samples, each seen in K >= 2 batches with independent companions.

    Returns:
        Float64 scalar, >= 0. 0: independent of the batch. Above 1 a representation says more about the companions
        than about the sample. Infinite where samples do not differ at all but batches do.

    Raises:
        ValueError: fewer than two draws or two samples.
    """
    draws, samples = z.shape[:2]
    occurrence = torch.arange(samples, device=z.device).repeat(draws)
    return batch_noise_of(z.reshape(draws * samples, -1), occurrence)


def batch_noise_of(z: Tensor, sample: Tensor, own: float = 0.0) -> Tensor:
    """:func:`batch_noise` where samples were seen unequally often.

    With n_i views of sample i, M views in all and k samples: MSW = within sum of squares / (M - k),
    MSB = between sum of squares / (k - 1), n0 = (M - sum n_i^2 / M) / (k - 1), nu = MSW / ((MSB - MSW) / n0).

    Args:
        z: readouts [M, D], one view a row.
        sample: which sample each view is of, integers [M].
        own: variance over the network's own random draws, summed over features; taken off MSW, whose other part is the
            companions'.

    Raises:
        ValueError: fewer than two samples, or no sample seen twice.
    """
    z = z.double().flatten(1)
    _, index, counts = torch.unique(sample, return_inverse=True, return_counts=True)
    views, groups = len(z), len(counts)
    if groups < 2 or views <= groups:
        raise ValueError(
            f"batch noise needs two samples and one of them seen twice; got {views} views of {groups} samples"
        )
    means = torch.zeros(groups, z.shape[1], dtype=z.dtype, device=z.device).index_add_(0, index, z)
    means /= counts[:, None]
    within = (z - means[index]).square().sum() / (views - groups)
    between = (counts[:, None] * (means - z.mean(0)).square()).sum() / (groups - 1)
    n0 = (views - counts.double().square().sum() / views) / (groups - 1)
    signal = ((between - within) / n0).clamp_min(0)
    companions = (within - own).clamp_min(0)
    return torch.where(companions == 0, torch.zeros_like(within), companions / signal)
