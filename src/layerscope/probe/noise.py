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
#: Of larger readouts (maps of labels, tokens) every k-th number is taken.
MOST_FEATURES = 8192
#: Below this, what two batches disagree on is rounding, and the network is independent of the batch.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def measure_batch_noise(
    readout: Callable[[Tensor], Tensor],
    samples: int,
    size: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    own: float = 0.0,
) -> float:
    """Nu of ``readout`` at batch size ``size``.

    Companions are drawn with replacement: then statistics over the batch scatter as they do for batches
    from a large data set, however few samples are at hand. Two batches that share their first sample are tried
    first; if it is read out alike, the network does not look at the batch and nu is exactly 0.

    Args:
        readout: numbers of B samples -> [B, D], the classifier input.
        samples: M, how many there are to draw anchors and companions from.
        size: B.
        generator: draws the batches.
        dtype: of the network, for the size of its rounding.
        own: variance of the (thinned) readout over the network's own random draws, summed over features.
    """
    if size < 2 or samples < 2:
        return 0.0
    batches = max(MIN_BATCHES, -(-VIEWS * samples // size))
    draws = torch.randint(samples, (batches, size), generator=generator)
    draws[1, 0] = draws[0, 0]
    views: list[Tensor] = []
    anchors: list[Tensor] = []
    for i, draw in enumerate(draws):
        z = readout(draw)
        z = thinned(z).double().cpu()
        # copies of one sample in one batch are one view of it: they share their companions
        first = torch.tensor([int((draw[:j] == draw[j]).any()) == 0 for j in range(size)])
        views.append(z[first])
        anchors.append(draw[first])
        if i == 1 and _alike(views[0][0], views[1][0], torch.cat(views), dtype):
            return 0.0
    return float(batch_noise_of(torch.cat(views), torch.cat(anchors), own))


def thinned(z: Tensor) -> Tensor:
    """Every k-th feature of [B, D], so that at most :data:`MOST_FEATURES` are left."""
    return z[:, :: -(-z.shape[1] // MOST_FEATURES)]


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
