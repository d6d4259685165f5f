"""Soft ranks of the cosine Gram matrix M (N x N): how many directions the samples really span.

All take M or its eigenvalues in float64 with leading axes allowed. For a homogeneous M (off-diagonals all c) the
eigenvalues are 1 + (N-1) c once and 1 - c (N-1) times, so that stable rank = N / (1 + (N-1) c) -> 1/c.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eigenvalues(m: Tensor) -> Tensor:
    """Eigenvalues [..., N] of the symmetric M [..., N, N], ascending, rounding below zero removed.

    A matrix with a non-finite entry has no spectrum: its eigenvalues are NaN.
    """
    m = m.double()
    finite = m.sum((-2, -1)).isfinite()
    safe = m if bool(finite.all()) else torch.where(finite[..., None, None], m, torch.zeros_like(m))
    values = torch.linalg.eigvalsh(safe).clamp_min_(0)
    return torch.where(finite[..., None], values, torch.full_like(values, torch.nan))


def centred_gram(m: Tensor) -> Tensor:
    """H M H with H = I - 11^T/N: the Gram matrix after subtracting the mean over samples."""
    m = m.double()
    rows = m.mean(-1, keepdim=True)
    return (m - rows).sub_(rows.transpose(-1, -2) - rows.mean(-2, keepdim=True))


def stable_rank(spectrum: Tensor) -> Tensor:
    """trace(M) / largest eigenvalue, in [1, N]; NaN for a zero matrix. For a cosine Gram matrix N / lambda_max.

    Args:
        spectrum: eigenvalues [..., N].
    """
    return spectrum.sum(-1) / spectrum.amax(-1)


def participation_ratio(m: Tensor) -> Tensor:
    """trace(M)^2 / |M|_F^2, in [1, rank]: a lower bound on the rank that needs no eigenvalues.

    Args:
        m: symmetric matrix [..., N, N].

    Source: Daneshmand et al. 2020 (arXiv 2003.01652).
    """
    m = m.double()
    return m.diagonal(dim1=-2, dim2=-1).sum(-1).square() / m.square().sum((-2, -1))


def effective_rank(spectrum: Tensor) -> Tensor:
    """Exponential of the entropy of the eigenvalues taken as probabilities, in [1, rank]; NaN for a zero matrix.

    The eigenvalues of a Gram matrix are the squared singular values of the activations.

    Args:
        spectrum: eigenvalues [..., N], non-negative.

    Source: Roy & Vetterli 2007, with squared singular values.
    """
    p = spectrum / spectrum.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy.exp()
