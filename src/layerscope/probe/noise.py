"""The batch-noise ratio nu of a network at its training batch size, from a second look at some of the samples.

The batches that are probed anyway are the first look. For the second they exchange samples: a new batch takes its first
sample from one of them, its second from another, and so on, each from its old place, and in random order. Samples keep
their place so that a network that looks at places (ghost batches, masks drawn for each place) finds everything but the
companions as before. Where there is one batch only, half of it is looked at alone.

What is read off is in ``quantities.noise``. The cost is one forward pass of a batch for every two that are probed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from layerscope.errors import ProbeError
from layerscope.probe.network import Network
from layerscope.quantities.noise import batch_noise_from_pairs, share_exchanged, total_variance

#: Second looks at least: of very few samples nu would be little more than chance.
FEWEST_LOOKS = 16
#: Half of a single batch smaller than this is one sample, whose statistics are no longer those of a batch.
SMALLEST_ALONE = 4
#: Of larger readouts (maps of labels, tokens) every k-th number is taken.
MOST_FEATURES = 8192
#: Below this share of the variance, what two batches disagree on is rounding: the network is independent of the batch.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def measure_batch_noise(
    readout: Callable[[Tensor], Tensor],
    first: Tensor,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    own: float = 0.0,
    whole: bool = False,
) -> float:
    """Nu at batch size B.

    Args:
        readout: numbers of n samples -> [n, D] of the classifier input, thinned.
        first: [K, B, D], what it gave for K batches of B samples, samples counted through.
        generator: draws the second batches.
        dtype: of the network, for the size of its rounding.
        own: variance of the readout over the network's own random draws, summed over features.
        whole: look at no batch that is smaller than B, and keep every sample in its place.

    Raises:
        ProbeError: a single batch that is too small.
    """
    batches, size = first.shape[:2]
    if size < 2:
        return 0.0
    if batches == 1 and size < SMALLEST_ALONE:
        raise ProbeError(
            f"batch noise was not measured: a single batch of {size} samples has no half to look at; "
            "give two batches or more"
        )
    looks, samples, shares = [], [], []
    for batch, kept in _second_batches(batches, size, generator, whole=whole):
        looks.append(readout(batch)[kept])
        samples.append(batch[kept])
        shares.append(share_exchanged(batch, size, batches)[kept])
    again, sample = torch.cat(looks), torch.cat(samples)
    if _alike(first, again, sample, dtype):
        return 0.0
    return float(batch_noise_from_pairs(first, again, sample, float(torch.cat(shares).mean()), own))


def _second_batches(
    batches: int, size: int, generator: torch.Generator, *, whole: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples of each second batch, and which of its places count."""
    places = torch.arange(size)
    half = -(-size // 2)
    kept = places if batches > 1 else places[:half]
    for _ in range(max(-(-batches // 2), -(-FEWEST_LOOKS // len(kept)))):
        order = torch.randperm(size, generator=generator)
        if batches > 1:
            start = int(torch.randint(batches, (1,), generator=generator))
            yield (places + start)[order] % batches * size + places, places
        else:
            stay = order[:half].sort().values
            batch = places.clone()
            batch[order[half:]] = stay[: size - half]
            yield (batch, stay) if whole else (stay, kept)


def thinned(z: Tensor) -> Tensor:
    """Every k-th feature of [B, D], so that at most :data:`MOST_FEATURES` are left."""
    return z[:, :: -(-z.shape[1] // MOST_FEATURES)]


def _alike(first: Tensor, again: Tensor, sample: Tensor, dtype: torch.dtype) -> bool:
    """Whether both looks agree but for rounding, of the difference between samples or of the numbers themselves."""
    rounding = ROUNDING.get(dtype, 1e-3)
    difference = (again - first.flatten(0, 1)[sample]).square().sum(1).mean()
    size = first.square().sum(-1).mean()
    return bool(difference <= max(rounding * total_variance(first), rounding**2 * size))


def has_places(network: Network) -> bool:
    """Whether what a sample sees of its batch depends on its place there, as in ghost batches."""
    return any("ghost" in type(module).__name__.lower() for _, module in network.modules)


def quiet_dropout(network: Network) -> None:
    """Switch random masks off, so that only the batch can change a readout. Undone by :func:`unchanged`."""
    for _, module in network.modules:
        if "drop" in type(module).__name__.lower():
            module.training = False
