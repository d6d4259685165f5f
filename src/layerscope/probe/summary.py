"""Tables of many call sites to one row of final numbers each, in float64.

The sites' channels are laid side by side in one long axis, so that a network of a hundred small layers costs a few
dozen operations, not a few dozen for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerscope.quantities.moments import Tables, unbiased_variance
from layerscope.quantities.similarity import cosine_from_resultant

#: The columns of a summary row.
COLUMNS = (
    "variance",
    "std",
    "ms",
    "mean",
    "dead_share",
    "cosine_pooled",
    "dead_samples",
    "nonfinite_share",
    "rounding",  # relative error of the variance to be feared
)
_WIDE = torch.float64


class Side(NamedTuple):
    """Tables [N, C] whose channels belong to one site or, side by side, to several."""

    tables: Tables
    widths: tuple[int, ...]
    """Channels of each site; they add up to C."""


def summarise(sides: Sequence[Side]) -> Tensor:
    """Float64 [sites, len(COLUMNS)]: the functions of ``layerscope.quantities`` with their shared parts done once.

    Args:
        sides: with one N, dtype and device, and either all of one position or none; C and positions may differ.
    """
    tables = [side.tables for side in sides]
    sums, norms = torch.cat([t.sums for t in tables], 1).to(_WIDE), torch.cat([t.norms for t in tables], 1)
    # One position: the entries are the values themselves, and exact squares lose nothing to cancellation. Otherwise
    # squaring does not overflow, because the norm's own sum of squares did not.
    exact = tables[0].positions == 1
    norms = norms.to(_WIDE) if exact else norms
    squares = norms * norms
    counts = [len(sums) * side.tables.positions for side in sides for _ in side.widths]
    widths = torch.tensor([width for side in sides for width in side.widths], device=sums.device)
    count = torch.tensor(counts, dtype=_WIDE, device=sums.device).repeat_interleave(widths)
    mean, second = sums.sum(0) / count, squares.sum(0, dtype=_WIDE) / count
    variance = unbiased_variance(mean, second, count)
    square_mean = mean.square()
    averages = _segments(torch.stack((variance, variance.sqrt(), second, mean, (second == 0).to(_WIDE)), 1), widths)
    # largest mean^2 / variance over channels: the digits that E[x^2] - E[x]^2 loses
    lost = torch.where(mean == 0, torch.zeros_like(mean), square_mean / variance)
    rounding = _segments(lost, widths, "max") * (0.0 if exact else torch.finfo(norms.dtype).eps)
    cosine, empty = _cosine(sums, widths)
    rest = (cosine, _dead_samples(squares, widths, empty), _nonfinite(sums, mean, widths), rounding)
    return torch.cat((averages / widths.unsqueeze(1), torch.stack(rest, 1)), 1)


def _segments(values: Tensor, widths: Tensor, how: str = "sum") -> Tensor:
    """Sum or maximum over each site's channels: [channels of all sites, ...] -> [sites, ...]."""
    result: Tensor = torch.segment_reduce(values.contiguous(), how, lengths=widths, axis=0)
    return result


def _cosine(sums: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """``similarity.mean_cosine`` of the sums [sites], and which samples' sums are all zero [sites, N]."""
    rows = sums.t().contiguous()
    norms = _segments(rows.square(), widths).sqrt_()
    empty = norms == 0
    weights = norms.clamp_min(torch.finfo(_WIDE).tiny).reciprocal()
    resultant = rows.mul_(weights.repeat_interleave(widths, 0)).sum(1)
    return cosine_from_resultant(_segments(resultant.square(), widths), (~empty).sum(1)), empty


def _dead_samples(squares: Tensor, widths: Tensor, empty: Tensor) -> Tensor:
    """How many samples are zero everywhere; looked for only where some sample's sums are (on the CPU)."""
    if empty.device.type == "cpu" and not bool(empty.any()):
        return torch.zeros(len(widths), dtype=_WIDE)
    return (_segments(squares.t(), widths, "max") == 0).sum(1).to(_WIDE)


def _nonfinite(sums: Tensor, mean: Tensor, widths: Tensor) -> Tensor:
    """``health.nonfinite_share``, without a look at every entry where all channel means are finite."""
    if mean.device.type == "cpu" and bool(mean.isfinite().all()):
        return torch.zeros(len(widths), dtype=_WIDE)
    return _segments((~sums.isfinite()).to(_WIDE).mean(0), widths) / widths
