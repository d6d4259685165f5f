"""Every draw of a training run has a seed of its own, derived from the run's seed and what is drawn.

So nothing that happens between two steps - a probe, an evaluation, a resumed session - can change what the next step
draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def derive(seed: int, *words: str | int) -> int:
    """A seed for one purpose: 63 bits of a hash of the run's seed and the words.

    >>> derive(0, "order", 3) == derive(0, "order", 3) != derive(1, "order", 3)
    True
    """
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def reseed(device: torch.device, seed: int) -> None:
    """Seed the global generators that a step on ``device`` draws from.

    ``torch.manual_seed`` would also queue a seed, with a stack trace, for every accelerator that is not in use: 300
    microseconds a call, and memory that grows.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[
            torch.cuda.current_device() if device.index is None else device.index
        ].manual_seed(seed)


def reseed_everything(seed: int) -> None:
    """Seed the generators that code for loading data may draw from: torch's, NumPy's and Python's."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - transforms of others draw from the global one


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """The global generators of Python, NumPy, the CPU and ``device`` are as they were, afterwards."""
    devices = [device] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is meant
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above


def digest(*parts: str | bytes) -> str:
    """Eight hex digits that tell one content from another."""
    made = blake2b(digest_size=4)
    for part in parts:
        made.update(part.encode() if isinstance(part, str) else part)
    return made.hexdigest()
