"""A few real training steps that leave no trace: what a look at the initialization cannot see."""

from __future__ import annotations

from torch import nn

from layerscope.probe.network import open_network
from layerscope.probe.outputs import Select
from layerscope.probe.state import unchanged
from layerscope.spec import Spec
from layerscope.training.history import History
from layerscope.training.loop import Train, fit
from layerscope.training.optimizers import OptimizerMaker
from layerscope.training.schedules import Schedule
from layerscope.training.steps import LossFn, StepFn


def micro_train(
    model: nn.Module,
    train: Train,
    *,
    steps: int = 15,
    batch_size: int | None = None,
    optimizer: str | Spec | OptimizerMaker = "sgd",
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str | Spec | Schedule = "constant",
    warmup: int = 0,
    seed: int = 0,
    loss: str | LossFn = "cross_entropy",
    output: Select = None,
    step_fn: StepFn | None = None,
) -> History:
    """Train for a few steps, look at the losses, and put everything back.

    A network that looks well at its initialization may still not bear its learning rate; ten to twenty real steps show
    that. Parameters, buffers, gradients, flags and random generators are afterwards what they were, to the bit.

    Args:
        model: the network, at whatever weights it has.
        train: as in :func:`layerscope.training.fit`, like the rest.
        steps: optimizer steps.
        batch_size: the batch size you will train with.
        optimizer: the optimizer you will train with.
        lr: the learning rate you will train with.
        momentum: of ``sgd``.
        weight_decay: as torch defines it for the optimizer.
        schedule: of the learning rate, over these few steps.
        warmup: steps of linear increase.
        seed: of data order and draws.
        loss: by name or as a function.
        output: which part of the network's output to use.
        step_fn: in place of ``loss``.

    Returns:
        The run, as :func:`layerscope.training.fit` returns it.

    Raises:
        LayerscopeError: as in :func:`layerscope.training.fit`; the network is restored then, too.
        ProbeError: a wrapped or scripted module, whose state cannot be put back.
    """
    with unchanged(open_network(model)):
        return fit(
            model,
            train,
            steps=steps,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup=warmup,
            seed=seed,
            loss=loss,
            output=output,
            step_fn=step_fn,
            progress=False,
        )
