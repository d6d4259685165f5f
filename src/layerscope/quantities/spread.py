"""How far samples differ at one place, relative to the size of what is there."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_spread(z: Tensor) -> Tensor:
    """Standard deviation across samples / rms, averaged over features: 0 means one answer for every input.

    Args:
        z: [N, D] features at the classifier input.

    Returns:
        Float64 scalar; features that are zero for every sample are left out; NaN with fewer than two samples.
    """
    z = z.double()
    if len(z) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    rms = z.square().mean(0).sqrt()
    ratio = z.std(0) / rms
    return ratio[rms != 0].mean()
