"""Judging a removal: clean accuracy, attack success, recovered accuracy, and how fast the backdoor is learned again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerscope import training
from layerscope.data import Dataset, as_dataset
from layerscope.methods.medic.attacks.images import Range, put, range_of
from layerscope.methods.medic.attacks.poison import Poisoned
from layerscope.methods.medic.attacks.training import train_poisoned
from layerscope.methods.medic.attacks.triggers import Trigger
from layerscope.methods.medic.checks import private_copy
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.records import Scores


def evaluate(
    model: nn.Module,
    test: Any,
    trigger: Trigger,
    target: int,
    *,
    sources: Sequence[int] | None = None,
    value_range: Range | None = None,
    batch_size: int = 256,
) -> Scores:
    """Clean accuracy, attack success rate and recovered accuracy, with their counts.

    Read the attack success rate against the floor: what a network trained without poison gives under the same trigger.

    Args:
        model: the classifier; it is not touched.
        test: clean test data, a Dataset or ``(x, y)``.
        trigger: the transform.
        target: class t.
        sources: classes that the attack turns into t; all others by default.
        value_range: (black, white) of the images; by default [0, 1] if they lie in it, otherwise [-1, 1].
        batch_size: images at a time.

    Raises:
        MedicError: there is no test image to attack, so that the attack success rate is not defined.
    """
    data = test if isinstance(test, Dataset) else as_dataset(test)
    span = range_of(data.x, value_range)
    y = data.y.cpu()
    attacked = y != target
    if sources is not None:
        attacked &= torch.isin(y, torch.tensor(list(sources)))
    index = attacked.nonzero().flatten()
    if len(index) == 0:
        raise MedicError(
            f"none of the {len(data)} test images can be attacked: all are of class {target}"
            + (f" or of none of the classes {tuple(sources)}" if sources is not None else "")
        )
    parts = []
    for some in torch.split(index, batch_size):
        x = put(trigger, data.x[some.to(data.x.device)], some, span)
        parts.append(training.predict(model, x, batch_size=batch_size))
    return scores_of(training.predict(model, data.x, batch_size=batch_size), y, torch.cat(parts), y[index], target)


def scores_of(clean: Tensor, y: Tensor, triggered: Tensor, true: Tensor, target: int) -> Scores:
    """Scores from outputs: logits [N, K] on clean images with labels, and on triggered ones with their true labels."""
    said = triggered.argmax(1)
    return Scores(
        acc=_share(clean.argmax(1) == y), asr=_share(said == target), ra=_share(said == true),
        n_clean=len(y), n_triggered=len(true),
    )  # fmt: skip


def relearn(
    model: nn.Module,
    few: Poisoned,
    test: Any,
    *,
    epochs: int = 5,
    lr: float = 0.01,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[Scores, ...]:
    """Fine-tune a copy on data with a few poisoned samples, and score it after every epoch.

    A backdoor that was only buried comes back within an epoch or two; a clean network treated alike is the yardstick.
    Source: the idea of arXiv 2410.09838.

    Args:
        model: the cleaned classifier; it is not touched.
        few: a small data set with some poisoned samples.
        test: clean test data.
        epochs: passes over ``few``.
        lr: of SGD with momentum 0.9.
        batch_size: samples of one step.
        seed: of the data order.
    """
    student = private_copy(model).requires_grad_(True)
    found: list[Scores] = []

    class Score(training.Callback):
        def on_epoch(self, run: training.Run) -> None:
            found.append(
                evaluate(run.model, test, few.trigger, few.target, sources=few.sources, value_range=few.value_range)
            )

    train_poisoned(
        student, few, epochs=epochs, lr=lr, batch_size=min(batch_size, len(few)), seed=seed,
        callbacks=[Score()], progress=False,
    )  # fmt: skip
    return tuple(found)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
