"""How alike a layer's outputs are for different samples (or different tokens): cosines between rows.

Rows that are all zero ("dead") have no direction; they are left out, and :func:`dead_rows` counts them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.quantities.moments import Tables


def mean_cosine(x: Tensor) -> Tensor:
    """Average cosine between all pairs of different samples, without forming the N x N matrix.

    With u_i = x_i / |x_i|:  (|sum_i u_i|^2 - N) / (N (N - 1)).  Two reads of x.

    Args:
        x: activations [..., N, D], one flattened sample a row (more axes after N are flattened by the caller).

    Returns:
        Float64 of shape [...], in [-1/(N-1), 1]. 1: the layer no longer tells samples apart. Dead rows are left
        out; NaN where fewer than two rows are alive.

    Source: Lubana et al. 2021 (arXiv 2106.05956), similarity of activations; equal to the mean off-diagonal entry
    of the cosine Gram matrix.
    """
    rows = x.double()
    norms = torch.linalg.vector_norm(rows, dim=-1)
    weights = norms.clamp_min(torch.finfo(torch.float64).tiny).reciprocal()
    resultant = (weights.unsqueeze(-2) @ rows).squeeze(-2)
    return cosine_from_resultant(resultant.square().sum(-1), (norms != 0).sum(-1))


def cosine_from_resultant(resultant_square: Tensor, alive: Tensor) -> Tensor:
    """(R^2 - n) / (n (n - 1)) for the squared length R^2 of the sum of n unit vectors; NaN for n < 2."""
    n = alive.double()
    value = (resultant_square.double() - n) / (n * (n - 1))
    return torch.where(n > 1, value, torch.full_like(value, torch.nan))


def pooled_cosine(t: Tables) -> Tensor:
    """:func:`mean_cosine` after averaging over positions, from the table of sums. Shape [...]."""
    return mean_cosine(t.sums)


def token_cosine(x: Tensor) -> Tensor:
    """Mean cosine between different tokens of one sample, averaged over samples.

    Args:
        x: tokens [..., N, S, C].

    Returns:
        Float64 of shape [...]. 1: all tokens of a sample have become the same (rank collapse). Samples with fewer
        than two living tokens are left out.

    Source: Dong et al. 2021 (arXiv 2103.03404), Noci et al. 2022 (arXiv 2206.03126).
    """
    return mean_cosine(x).nanmean(-1)


def cosine_gram(x: Tensor) -> Tensor:
    """M = U U^T with rows u_i = x_i / |x_i|: the cosines between all pairs.

    Args:
        x: activations [..., N, D].

    Returns:
        Float64 [..., N, N] with a unit diagonal; rows and columns of dead samples are zero.
    """
    rows = x.double()
    return normalized_gram(rows @ rows.transpose(-1, -2))


def normalized_gram(gram: Tensor) -> Tensor:
    """The cosine Gram matrix from the plain one: G_ij / sqrt(G_ii G_jj), zero where a sample is dead."""
    g = gram.double()
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    alive = diagonal != 0
    scale = torch.where(alive, diagonal, torch.ones_like(diagonal)).rsqrt()
    m = (g * scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))
    m.diagonal(dim1=-2, dim2=-1).copy_(torch.where(diagonal.isfinite(), alive.double(), diagonal))
    return m


def dead_rows(x: Tensor) -> Tensor:
    """Number of samples whose activations are all zero. Shape [...] for x [..., N, D]."""
    return (x == 0).all(-1).sum(-1)
