"""Tables [..., N, C] to one row of final numbers, in float64; leading axes are records of the same shape."""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.quantities import health, moments, similarity
from layerscope.quantities.moments import Tables

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
    """Float64 [..., len(COLUMNS)]."""
    mean, second, count = moments.channel_moments(t)
    variance = moments.unbiased_variance(mean, second, count)
    return torch.stack(
        (
            variance.mean(-1),
            variance.sqrt().mean(-1),
            second.mean(-1),
            mean.mean(-1),
            similarity.pooled_cosine(t),
            health.dead_share(t),
            health.dead_samples(t).double(),
            health.nonfinite_share(t),
            moments.cancellation_of(mean, second, count),
        ),
        -1,
    )
