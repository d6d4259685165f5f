"""Tables [..., N, C] to one row of final numbers, in float64; leading axes are records of the same shape."""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.quantities.moments import Tables, cancellation_of, unbiased_variance
from layerscope.quantities.similarity import mean_cosine

#: The columns of a summary row.
COLUMNS = (
    "variance",
    "std",
    "ms",
    "mean",
    "cosine_pooled",
    "dead_share",
    "dead_samples",
    "nonfinite_share",
    "cancellation",
)


def summarise(t: Tables) -> Tensor:
    """Float64 [..., len(COLUMNS)]: the functions of ``layerscope.quantities`` with their shared parts done once."""
    sums, squares = t.sums.double(), t.squares
    count = sums.shape[-2] * t.positions
    mean, second = sums.sum(-2) / count, squares.sum(-2) / count
    variance = unbiased_variance(mean, second, count)
    return torch.stack(
        (
            variance.mean(-1),
            variance.sqrt().mean(-1),
            second.mean(-1),
            mean.mean(-1),
            mean_cosine(sums),
            (second == 0).double().mean(-1),
            (squares.sum(-1) == 0).sum(-1).double(),
            1 - t.sums.isfinite().double().mean((-2, -1)),
            cancellation_of(mean, second, count),
        ),
        -1,
    )
