"""What initialization cannot show: a few real steps at the user's own learning rate, in the form that a verdict reads.

A network that is perfect at initialization can still diverge at a large learning rate (SkipInit), and a layer that
looks mid-table can need warm-up (Filter Response Norm). Ten to twenty steps tell.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from layerscope import data as datasets
from layerscope import probe, training
from layerscope.errors import LayerscopeError, TrainingError
from layerscope.spec import Spec
from layerscope.verdict.early import is_diverged
from layerscope.verdict.thresholds import DEFAULT
from layerscope.verdict.types import MicroTrain


def real_steps(model: nn.Module, data: Any, *, lr: float, steps: int = 20, **options: Any) -> MicroTrain:
    """A few real training steps that leave no trace, and whether they diverged.

    Args:
        model: the network, which is afterwards what it was before.
        data: as for :func:`layerscope.compare`.
        lr: the learning rate you intend to use, constant, without warm-up.
        steps: optimizer steps; 10 to 20 suffice to see divergence and the first fall of the loss.
        options: further arguments of :func:`layerscope.training.micro_train`.

    Raises:
        TrainingError: a learning rate or step count that is not positive; a step that fails.
    """
    if not lr > 0 or steps < 2:
        raise TrainingError(
            f"real steps need a positive learning rate and at least 2 of them; got lr={lr}, steps={steps}"
        )
    size = options.get("batch_size") or 0
    loss, output = options.pop("loss", "cross_entropy"), options.pop("output", None)
    options["step_fn"] = lambda net, batch: probe.loss(net, batch, loss=loss, output=output)
    if not isinstance(data, str | Spec | datasets.Dataset):
        data = datasets.repeated(data, options.pop("batch_size", None) or 32)
    try:
        history = training.micro_train(model, data, lr=lr, steps=steps, **options)
    except LayerscopeError:
        raise
    except Exception as error:
        raise TrainingError(
            f"a real step failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}; micro_steps=0 leaves "
            "them out"
        ) from error
    losses = tuple(history.losses)
    diverged = history.diverged or is_diverged(losses)
    first = (
        history.diverged_at
        if history.diverged
        else next((i for i, v in enumerate(losses) if v > DEFAULT.steps_worse * losses[0]), None)
    )
    return MicroTrain(lr, steps, history.batch_size or size, losses, diverged, first if diverged else None)
