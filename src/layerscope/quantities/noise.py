"""nu: how much of a sample's representation comes from the company it keeps in the batch.

The definition is nu = V / S with V = E_x[ Var_batch z(x) ] and S = Var_x( E_batch z(x) ), z(x) the representation of a
sample x, the inner variance over random companions. T = V + S is the variance of z over samples of different batches.

**By definition** (:func:`batch_noise`): every sample in several batches with independent companions. Each batch is a
forward pass.

**From second looks** (:func:`batch_noise_from_pairs`): z and z', the same sample in two batches, of which the second
shares some samples with the first. A statistic of a batch is a function of means over it, so that to first order
z = E z + sum_j w_j psi(x, x_j), with weights w_j = 1/B and E_j psi = 0. With s the variance of psi over companions,
V = s (B - 1) / B^2 and

    E |z - z'|^2 / 2 = e V,        e = sum_j (w_j - w'_j)^2 / (2 (B - 1) / B^2).

e is 1 for two batches that share x alone, and else the share of the companions that were exchanged
(:func:`share_exchanged`). For half a batch against the whole, e = B / (2 (B - 1)): leaving the other half out is
exchanging it for copies of the first. That is the half-sample method of survey statistics (McCarthy 1969): the
difference between the half and the whole has the variance of the whole. The half doubles x's own weight too; it is
counted like that of a companion, which is exact for a mean.

First order is not enough where a small change of the batch grows from layer to layer. |z - z'|^2 / 2 is then more than
e V, but never more than T, which batches without a common sample leave. With y = |z - z'|^2 / 2T, nu is y / (1 - y)
where e = 1, whatever its size, and y / e where nu is small, whatever e. Used is nu = y / (1 - y) / e, which has both
limits and takes nu as proportional to e, as it nearly is to 1/B. Between the limits this is an interpolation, no law.
"""

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


def batch_noise_of(z: Tensor, sample: Tensor) -> Tensor:
    """:func:`batch_noise` where samples were seen unequally often.

    With n_i views of sample i, M views in all and k samples: MSW = within sum of squares / (M - k),
    MSB = between sum of squares / (k - 1), n0 = (M - sum n_i^2 / M) / (k - 1), nu = MSW / ((MSB - MSW) / n0).

    Args:
        z: readouts [M, D], one view a row.
        sample: which sample each view is of, integers [M].

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
    return torch.where(within == 0, torch.zeros_like(within), within / signal)


def batch_noise_from_pairs(first: Tensor, again: Tensor, sample: Tensor, exchanged: float, own: float = 0.0) -> Tensor:
    """Nu from second looks at some samples, in batches that have samples in common with the first (see the module).

    Args:
        first: readouts [K, B, D] of K batches of B samples.
        again: readouts [M, D] in other batches.
        sample: which sample each row of ``again`` is of: sample i of batch k is k B + i. Integers [M].
        exchanged: e, the mean over these rows of :func:`share_exchanged`.
        own: variance over the network's own random draws, summed over features, where a sample's two looks had the
            same draws; taken off T, so that nu is the companions' part alone.

    Returns:
        Float64 scalar, >= 0, infinite where samples do not differ beyond what companions do.

    Raises:
        ValueError: no second look, or not a positive share.
    """
    if not len(again) or not exchanged > 0:
        raise ValueError(f"batch noise needs a second look with other companions; got {len(again)}, share {exchanged}")
    first, again = first.double().flatten(2), again.double().flatten(1)
    half_square = (again - first.flatten(0, 1)[sample]).square().sum(1).mean() / 2
    rest = (total_variance(first) - own - half_square).clamp_min(0)
    return torch.where(half_square == 0, torch.zeros_like(half_square), half_square / rest / exchanged)


def total_variance(z: Tensor) -> Tensor:
    """T: variance over samples of different batches, summed over features, of readouts [K, B, D].

    Samples of one batch are no independent pair: what a batch has in common drops out of their difference. With one
    batch there are no others; its variance is then taken with divisor B, which is exact where a layer centres.
    """
    means = z.mean(1)
    product = means.square().sum()
    if len(z) > 1:
        product = (means.sum(0).square().sum() - product) / (len(z) * (len(z) - 1))
    return z.square().sum(-1).mean() - product


def share_exchanged(batch: Tensor, size: int, batches: int) -> Tensor:
    """The e of each row of a second batch: by how much its companions differ from those of the first time.

    Args:
        batch: which samples the second batch holds, integers [n]; repeats count.
        size: B, samples in a first batch; first batch k holds samples k B to k B + B - 1.
        batches: how many first batches there were.

    Returns:
        Float64 [n]: 0 for the same batch again, 1 for one with nothing in common but the sample itself.

    >>> share_exchanged(torch.tensor([0, 4, 8, 12]), 4, 4), share_exchanged(torch.tensor([0, 1, 6, 7]), 4, 2)
    (tensor([1., 1., 1., 1.], dtype=torch.float64), tensor([0.6667, 0.6667, 0.6667, 0.6667], dtype=torch.float64))
    """
    batch = batch.cpu()
    second = torch.bincount(batch, minlength=size * batches).double() / len(batch)
    firsts = torch.eye(batches, dtype=torch.float64).repeat_interleave(size, 1) / size
    return ((second - firsts).square().sum(1) / (2 * (size - 1) / size**2))[batch // size]
