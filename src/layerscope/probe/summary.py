"""Tables [..., N, C] to one row of final numbers, in float64; leading axes are records of the same shape."""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.quantities.health import nonfinite_share
from layerscope.quantities.moments import Tables, cancellation_of, unbiased_variance
from layerscope.quantities.similarity import cosine_from_resultant

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
    "rounding",  # relative error of the variance to be feared
)


def summarise(t: Tables) -> Tensor:
    """Float64 [..., len(COLUMNS)]: the functions of ``layerscope.quantities`` with their shared parts done once."""
    wide = torch.float64
    # One position: the entries are the values themselves, and exact squares lose nothing to cancellation. Otherwise
    # squaring does not overflow, because the norm's own sum of squares did not.
    squares = t.squares if t.positions == 1 else t.norms * t.norms
    count = t.sums.shape[-2] * t.positions
    mean, second = t.sums.sum(-2, dtype=wide) / count, squares.sum(-2, dtype=wide) / count
    variance = unbiased_variance(mean, second, count)
    return torch.stack(
        (
            variance.mean(-1),
            variance.sqrt().mean(-1),
            second.mean(-1),
            mean.mean(-1),
            _cosine(t.sums),
            (second == 0).double().mean(-1),
            (squares.sum(-1) == 0).sum(-1).double(),
            _nonfinite(t, mean),
            cancellation_of(mean, second, count) * (0.0 if t.positions == 1 else torch.finfo(t.sums.dtype).eps),
        ),
        -1,
    )


def _cosine(rows: Tensor) -> Tensor:
    """``similarity.mean_cosine``, without a float64 copy of the rows."""
    norms = torch.linalg.vector_norm(rows, dim=-1)
    weights = norms.clamp_min(torch.finfo(norms.dtype).tiny).reciprocal()
    resultant = (weights.unsqueeze(-2) @ rows).squeeze(-2).double()
    return cosine_from_resultant(resultant.square().sum(-1), (norms != 0).sum(-1))


def _nonfinite(t: Tables, mean: Tensor) -> Tensor:
    """``health.nonfinite_share``, without a look at every entry where all channel means are finite."""
    if mean.device.type == "cpu" and bool(mean.isfinite().all()):
        return torch.zeros(mean.shape[:-1], dtype=torch.float64)
    return nonfinite_share(t)
