"""What initialization cannot show: a few real steps at the user's own learning rate, on a copy.

A network that is perfect at initialization can still diverge at a large learning rate (SkipInit), and a layer that
looks mid-table can need warm-up (Filter Response Norm). Ten to twenty steps tell. So does the largest learning rate at
which they stay stable, which is what normalization layers trade against speed (Lubana, Dick, Tanaka 2021, arXiv
2106.05956).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from layerscope import training
from layerscope.errors import TrainingError
from layerscope.verdict.types import MicroTrain

#: A tail loss above this multiple of the first loss counts as diverging, even if it is finite.
WORSE = 1.5


def micro_train(
    model: nn.Module,
    data: Any,
    *,
    lr: float,
    steps: int = 20,
    batch_size: int = 32,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    loss: Any = "cross_entropy",
    output: Any = None,
    seed: int = 0,
) -> MicroTrain:
    """A few real training steps on a copy of ``model``; the network itself is not touched.

    Args:
        model: any network that can be deep-copied.
        data: as for :func:`layerscope.training.fit`.
        lr: the learning rate you intend to use, constant, without warm-up.
        steps: optimizer steps; 10 to 20 suffice to see divergence and the first fall of the loss.
        batch_size: the batch size you intend to use.
        optimizer: as for :func:`layerscope.training.fit`.
        momentum: of ``sgd``.
        loss: as for :func:`layerscope.training.fit`.
        output: as for :func:`layerscope.training.fit`.
        seed: of the data order.

    Raises:
        TrainingError: a learning rate or step count that is not positive; a step that fails.
    """
    if not lr > 0 or steps < 2:
        raise TrainingError(f"micro-training needs a positive learning rate and at least 2 steps; got {lr} and {steps}")
    history = training.fit(
        copy.deepcopy(model), data, steps=steps, batch_size=batch_size, optimizer=optimizer,
        momentum=momentum, lr=lr, loss=loss, output=output, seed=seed, progress=False,
    )  # fmt: skip
    losses = tuple(history.losses)
    first, tail = losses[0], sum(losses[-3:]) / len(losses[-3:])
    diverged = history.diverged or not math.isfinite(tail) or tail > WORSE * max(first, 1e-12)
    at = (
        history.diverged_at
        if history.diverged
        else next((i for i, v in enumerate(losses) if not v <= WORSE * first), None)
    )
    return MicroTrain(lr, steps, batch_size, losses, diverged, at if diverged else None)


@dataclass(frozen=True)
class StableRate:
    """The largest learning rate at which a few steps stayed stable, and everything that was tried."""

    lr: float | None
    """None: not even the smallest one tried was stable."""
    tried: tuple[MicroTrain, ...]
    """In the order tried."""
    at_limit: bool
    """The largest rate tried was stable: the true limit lies above."""


def stable_rate(
    model: nn.Module,
    data: Any,
    *,
    low: float = 1e-4,
    high: float = 10.0,
    factor: float = 1.5,
    steps: int = 20,
    batch_size: int = 32,
    **options: Any,
) -> StableRate:
    """Largest learning rate at which ``steps`` steps do not diverge, by bisection of its logarithm.

    Divergence need not be monotonic in the learning rate; what is returned was itself stable, and the next rate that
    was tried above it, at most ``factor`` times larger, was not.

    Args:
        model: any network; copies are trained.
        data: as for :func:`layerscope.training.fit`.
        low: smallest rate tried.
        high: largest rate tried.
        factor: stop when the bracket is narrower than this.
        steps: see :func:`micro_train`.
        batch_size: see :func:`micro_train`.
        options: further arguments of :func:`micro_train`.
    """
    if not 0 < low < high or factor <= 1:
        raise TrainingError(f"expected 0 < low < high and factor > 1; got low={low}, high={high}, factor={factor}")

    tried: list[MicroTrain] = []

    def stable(lr: float) -> bool:
        tried.append(micro_train(model, data, lr=lr, steps=steps, batch_size=batch_size, **options))
        return not tried[-1].diverged

    if stable(high):
        return StableRate(high, tuple(tried), True)
    if not stable(low):
        return StableRate(None, tuple(tried), False)
    while high / low > factor:
        middle = math.sqrt(low * high)
        if stable(middle):
            low = middle
        else:
            high = middle
    return StableRate(low, tuple(tried), False)
