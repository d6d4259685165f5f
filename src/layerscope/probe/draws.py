"""Networks whose noise is always on: several draws of the classifier input part what the input decides from chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.probe.network import Network
from layerscope.probe.noise import quiet_dropout, thinned
from layerscope.probe.outputs import first_tensor
from layerscope.probe.state import Generators
from layerscope.quantities.draws import Draws

DRAWS = 8


@dataclass(frozen=True)
class OwnNoise:
    """What several draws of one batch gave."""

    variance: float
    """Variance of the thinned classifier input over draws, summed over features."""
    ratio: float
    """Variance of the classifier input over draws / variance of its expectation over samples."""
    cosine: float
    """Mean cosine between the expectations of different samples."""
    unpooled: float
    """The same at the last map before pooling."""


def draws_in_evaluation(network: Network, run: Callable[[], Any]) -> bool:
    """Whether the network draws random numbers in evaluation mode too, where dropout is off."""
    with _flags(network):
        for _, module in network.modules:
            module.training = False
        before = Generators(network)
        with torch.no_grad():
            run()
        moved = before.moved()
        before.restore()
    return moved


def own_noise(network: Network, read: Callable[[], Tensor | None], last_map: nn.Module | None) -> OwnNoise | None:
    """Draw the classifier input :data:`DRAWS` times in train mode, with dropout off.

    Args:
        network: left as it was found, generators included.
        read: runs the network and returns the classifier input [N, D].
        last_map: the module whose output is the last map before pooling; None where nothing is pooled.
    """
    pooled, maps = Draws(), Draws()

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        if (seen := first_tensor(output)) is not None:
            maps.add(seen)

    handle = last_map.register_forward_hook(watch) if last_map is not None else None
    before = Generators(network)
    try:
        with _flags(network), torch.no_grad():
            quiet_dropout(network)
            for _ in range(DRAWS):
                z = read()
                if z is None or len(z) < 2:
                    return None
                pooled.add(thinned(z))
    finally:
        before.restore()
        if handle is not None:
            handle.remove()
    cosine = pooled.cosine()
    return OwnNoise(pooled.noise(), pooled.noise_ratio(), cosine, maps.cosine() if maps.count == DRAWS else cosine)


@contextmanager
def _flags(network: Network) -> Iterator[None]:
    saved = [(module, module.training) for _, module in network.modules]
    try:
        yield
    finally:
        for module, flag in saved:
            module.training = flag
