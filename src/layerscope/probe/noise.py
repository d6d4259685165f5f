"""The batch-noise ratio nu of a network at its training batch size, by forward passes on bootstrapped batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from layerscope.probe.network import Network
from layerscope.quantities.noise import batch_noise_of

#: Views of every sample, on average: with 64 samples this leaves nu uncertain by about a fifth.
VIEWS = 4
MIN_BATCHES = 4
#: Below this, what two batches disagree on is rounding, and the network is independent of the batch.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def measure_batch_noise(readout: Callable[[Tensor], Tensor], x: Tensor, size: int, generator: torch.Generator) -> float:
    """Nu of ``readout`` at batch size ``size``.

    Companions are drawn with replacement from ``x``: then statistics over the batch scatter as they do for batches
    from a large data set, however few samples are at hand. Two batches that share their first sample are tried
    first; if it is read out alike, the network does not look at the batch and nu is exactly 0.

    Args:
        readout: [B, ...] -> [B, D], the classifier input.
        x: anchors and companions [M, ...].
        size: B.
        generator: draws the batches.
    """
    if size < 2 or len(x) < 2:
        return 0.0
    batches = max(MIN_BATCHES, -(-VIEWS * len(x) // size))
    draws = torch.randint(len(x), (batches, size), generator=generator)
    draws[1, 0] = draws[0, 0]
    views: list[Tensor] = []
    samples: list[Tensor] = []
    for i, draw in enumerate(draws):
        z = readout(x[draw.to(x.device)]).double().flatten(1).cpu()
        # copies of one sample in one batch are one view of it: they share their companions
        first = torch.tensor([int((draw[:j] == draw[j]).any()) == 0 for j in range(size)])
        views.append(z[first])
        samples.append(draw[first])
        if i == 1 and _alike(views[0][0], views[1][0], torch.cat(views), x.dtype):
            return 0.0
    return float(batch_noise_of(torch.cat(views), torch.cat(samples)))


def _alike(a: Tensor, b: Tensor, all_views: Tensor, dtype: torch.dtype) -> bool:
    if torch.equal(a, b):
        return True
    spread = all_views.var(0).sum()
    return bool((a - b).square().sum() <= ROUNDING.get(dtype, 1e-3) * spread)


def quiet_dropout(network: Network) -> None:
    """Switch random masks off, so that only the batch can change a readout. Undone by :func:`unchanged`."""
    for _, module in network.modules:
        if "drop" in type(module).__name__.lower():
            module.training = False
