"""Draw from a seed and leave the global generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch (CPU), numpy and ``random`` draw from ``seed``; afterwards all are in the state they were in."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002 - users draw from it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a user's factory may draw from the global generator
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - puts back what was there
        torch.random.set_rng_state(states[2])
