"""The largest learning rate that a network bears, found by short training runs that leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from layerscope.data import Dataset, as_dataset
from layerscope.errors import TrainingError
from layerscope.probe.outputs import Select
from layerscope.spec import Spec
from layerscope.training.history import History
from layerscope.training.loop import Train, is_in_memory
from layerscope.training.micro import micro_train
from layerscope.training.optimizers import OptimizerMaker
from layerscope.training.steps import LossFn

#: Spacing of the first scan; bisection does the rest.
_COARSE = 4.0


@dataclass(frozen=True)
class LrTrial:
    """One short run."""

    lr: float
    loss: float
    """Mean loss of the last quarter of the steps; infinite if it diverged."""
    diverged: bool


@dataclass(frozen=True)
class LrLimit:
    """What a search for the largest stable learning rate found."""

    lr: float | None
    """The largest rate at which training did at least half as well as at its best; None: it never did any good."""
    best_lr: float | None
    """The rate at which the loss fell most."""
    reference: float
    """The loss without training: of the untrained network, or of guessing evenly if that is lower."""
    at_edge: bool
    """The largest rate tried was still stable; the limit lies higher."""
    trials: tuple[LrTrial, ...]
    """Every run, by learning rate."""


def largest_stable_lr(
    model: nn.Module,
    train: Train,
    *,
    steps: int = 40,
    low: float = 1e-3,
    high: float = 16.0,
    precision: float = 1.2,
    batch_size: int | None = None,
    optimizer: str | Spec | OptimizerMaker = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    loss: str | LossFn = "cross_entropy",
    output: Select = None,
) -> LrLimit:
    """Scan learning rates by short runs, then narrow the limit down by bisection.

    With ``gain(lr)`` = reference loss - loss at the end of a run, the limit is the upper end of the range around the
    best rate in which the gain is at least half of its largest value: above it training diverges, or hovers at chance.
    The network is afterwards what it was before.

    Args:
        model: the network, usually at its initialization.
        train: as in :func:`layerscope.training.fit`, like the rest; an iterable is passed over once for every run.
        steps: of each run. Longer runs give lower limits: some instabilities need time to grow.
        low: smallest learning rate tried.
        high: largest learning rate tried.
        precision: largest ratio of the first failing rate to the limit.
        batch_size: the batch size you will train with.
        optimizer: the optimizer you will train with.
        momentum: of ``sgd``.
        weight_decay: as torch defines it for the optimizer.
        seed: of data order and draws, the same in all runs.
        loss: by name or as a function.
        output: which part of the network's output to use.

    Raises:
        TrainingError: a range that is none, or whatever stops :func:`layerscope.training.fit`.
    """
    if not (0 < low < high < math.inf) or not 1 < precision < math.inf:
        raise TrainingError(f"low={low}, high={high}, precision={precision}: expected 0 < low < high and precision > 1")
    data = as_dataset(train) if is_in_memory(train) else train
    run = partial(
        micro_train, model, data, steps=steps, batch_size=batch_size, optimizer=optimizer, momentum=momentum,
        weight_decay=weight_decay, seed=seed, loss=loss, output=output,
    )  # fmt: skip
    reference = _end(run(lr=0.0, weight_decay=0.0))
    if loss == "cross_entropy" and isinstance(data, Dataset) and data.classes > 1:
        reference = min(reference, math.log(data.classes))
    return _search(lambda lr: _trial(lr, run(lr=lr)), reference, low, high, precision)


def _search(trial: Callable[[float], LrTrial], reference: float, low: float, high: float, precision: float) -> LrLimit:
    count = max(2, math.ceil(math.log(high / low) / math.log(_COARSE)) + 1)
    trials = [trial(low * (high / low) ** (i / (count - 1))) for i in range(count)]
    best = min(trials, key=lambda t: t.loss)
    if not best.loss < reference:
        return LrLimit(None, None, reference, False, tuple(trials))
    # The best rate found fixes the bar once; a better one met while bisecting must not move it.
    bar = reference - (reference - best.loss) / 2
    above = trials[trials.index(best) :]
    failing = next((t for t in above if t.loss > bar), None)
    if failing is None:
        return LrLimit(trials[-1].lr, best.lr, reference, True, tuple(trials))
    good, bad = trials[trials.index(failing) - 1].lr, failing.lr
    while bad / good > precision:
        middle = trial(math.sqrt(good * bad))
        trials.append(middle)
        good, bad = (middle.lr, bad) if middle.loss <= bar else (good, middle.lr)
    return LrLimit(good, best.lr, reference, False, tuple(sorted(trials, key=lambda t: t.lr)))


def _trial(lr: float, history: History) -> LrTrial:
    return LrTrial(lr, math.inf if history.diverged else _end(history), history.diverged)


def _end(history: History) -> float:
    tail = history.losses[-max(1, len(history.losses) // 4) :]
    return sum(tail) / len(tail)
