"""The fit loop: one small, fast loop that every study and every method uses.

A run is a pure function of its arguments: data order, augmentation and every random draw of a step come from the seed
and the step's number, so that a run that was interrupted or killed and then resumed ends with the same bits as one that
was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.data import Dataset, as_dataset, load
from layerscope.errors import TrainingError
from layerscope.probe.outputs import Select
from layerscope.spec import Spec
from layerscope.training.augment import Augment
from layerscope.training.batches import Batches, InMemory, Stream
from layerscope.training.callbacks import Callback, Run, as_callback
from layerscope.training.history import History
from layerscope.training.optimizers import Groups, OptimizerMaker
from layerscope.training.schedules import Schedule
from layerscope.training.seeds import digest
from layerscope.training.session import Kept, Session, Watchers
from layerscope.training.settings import Amp, Settings, device_of
from layerscope.training.sinks import Sink
from layerscope.training.stepper import Stepper
from layerscope.training.steps import LossFn, StepFn

Train = str | Spec | Dataset | tuple[Tensor, Tensor] | Iterable[Any]

#: Data sets up to this size are kept on the device as a whole.
_RESIDENT_BYTES = 2 << 30


def fit(
    model: nn.Module,
    train: Train,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str | Spec | OptimizerMaker = "sgd",
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    groups: Groups | None = None,
    schedule: str | Spec | Schedule = "constant",
    warmup: int = 0,
    clip: float | None = None,
    amp: Amp | None = None,
    channels_last: bool = False,
    accumulate: int = 1,
    device: str | torch.device | None = None,
    seed: int = 0,
    loss: str | LossFn = "cross_entropy",
    output: Select = None,
    step_fn: StepFn | None = None,
    loss_limit: float = float("inf"),
    augment: str | Augment | None = None,
    callbacks: Sequence[Callback | Callable[[Run], None]] = (),
    eval_data: Any = None,
    eval_every: int | None = None,
    sinks: Sequence[Sink] = (),
    log_every: int = 10,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> History:
    """Train a network in place.

    Args:
        model: any network. Its train flags are afterwards what they were before; its gradients are cleared.
        train: a data set's name, a Dataset, tensors (x, y), or an iterable of batches such as a DataLoader.
        steps: optimizer steps. Give this or ``epochs``.
        epochs: passes over the data.
        batch_size: samples of one optimizer step, 128 by default; for data in memory only.
        optimizer: ``sgd``, ``sgd:nesterov=true``, ``adamw:beta2=0.95``, or a function (parameters, lr) -> Optimizer.
        lr: base learning rate.
        momentum: of ``sgd``.
        weight_decay: as torch defines it for the optimizer.
        groups: a function that splits the network's parameters into groups with settings of their own, such as
            :func:`layerscope.training.decay_matrices_only`.
        schedule: ``constant``, ``step:at=0.5``, ``cosine``, ``onecycle``, or a function (step, total) -> factor.
        warmup: steps of linear increase before the schedule.
        clip: largest allowed norm of all gradients together.
        amp: compute in ``bfloat16`` or ``float16`` (with loss scaling) where torch deems it safe.
        channels_last: memory format of images and kernels.
        accumulate: parts that each batch is computed in, one after the other; statistics over a batch see one part.
        device: where to train; by default where the network is.
        seed: of the data order, the augmentation and every draw inside the network. The weights are the caller's.
        loss: ``cross_entropy``, ``mse``, or a function (outputs, targets) -> mean over the batch.
        output: which part of the network's output the loss takes: a key, an index or a function. None: the tensor
            itself, or its ``logits``.
        step_fn: in place of ``loss``: (model, batch) -> loss, or (loss, numbers to record).
        loss_limit: a loss above it counts as divergence, as a loss that is not finite always does.
        augment: ``flip``, ``crop``, ``flip-crop``, or a function (images, generator) -> images.
        callbacks: :class:`layerscope.training.Callback` objects, or functions called with the run after each step.
        eval_data: evaluated on every ``eval_every`` steps and at the end; for a name, its test split.
        eval_every: steps between evaluations; only at the end if left out.
        sinks: where numbers go while the run is under way.
        log_every: steps between two lines for the sinks.
        checkpoint: file to keep the run in. Ctrl-C then finishes the step, writes it and stops.
        checkpoint_every: steps between two writings; a twentieth of the run if left out.
        resume: go on from ``checkpoint`` if it exists; the result is the same to the bit as without a break.
        progress: show a progress bar; by default where stderr is a terminal.

    Returns:
        Losses, learning rates, metrics and evaluations as plain numbers. A run that diverges stops there and says so.

    Raises:
        TrainingError: settings, data, network and checkpoint do not fit together; a step that fails.
        SpecError: an unknown optimizer, schedule, loss or augmentation.
        DataError: data that is missing or damaged.
        ProbeError: the network's output has no such part.
        KeyboardInterrupt: Ctrl-C, after the checkpoint was written.
    """
    settings = Settings(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        groups=groups,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        amp=amp,
        channels_last=channels_last,
        accumulate=accumulate,
        seed=seed,
        loss=loss,
        output=output,
        step_fn=step_fn,
        loss_limit=loss_limit,
        augment=augment,
        eval_every=eval_every,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
    )
    where = device_of(model, device)
    if isinstance(eval_data, str | Spec):
        eval_data = load(eval_data, "test")
    batches, data = _batches(train, settings, where)
    total = _total(settings, batches)
    if warmup >= total:
        raise TrainingError(f"warmup={warmup} leaves none of the {total} steps for the schedule")
    watchers = Watchers([as_callback(c) for c in callbacks], tuple(sinks), log_every, eval_data, progress)
    kept = None if checkpoint is None else Kept(Path(checkpoint), checkpoint_every or max(1, total // 20))
    stepper = Stepper(model, settings, where, total)
    session = Session(stepper, batches, watchers, kept, settings.described(model, data, total))
    if kept is not None and resume and kept.path.exists():
        session.restore()
    return session.run()


def is_in_memory(train: Train) -> bool:
    """Whether ``train`` is a data set as a whole (a name, a Dataset, tensors) and not an iterable of batches."""
    if isinstance(train, str | Spec | Dataset):
        return True
    return isinstance(train, tuple | list) and len(train) == 2 and isinstance(train[0], Tensor)


def _batches(train: Train, settings: Settings, device: torch.device) -> tuple[Batches, str]:
    """The batches, and the data in words."""
    if not is_in_memory(train):
        if settings.batch_size is not None:
            raise TrainingError(
                "batch_size= is for data in memory; an iterable's batches are as large as it makes them"
            )
        if not isinstance(train, Iterable):
            raise TrainingError(
                f"{type(train).__name__} is nothing to train on: expected a data set's name, tensors (x, y), or batches"
            )
        return Stream(train, settings.seed), type(train).__name__
    data = as_dataset(train)
    text = f"{data!r} ({digest(data.x[:16].double().numpy(force=True).tobytes(), data.y.numpy(force=True).tobytes())})"
    if data.x.nbytes <= _RESIDENT_BYTES:
        data = Dataset(data.name, data.x.to(device), data.y.to(device), data.classes)
    return InMemory(data, settings.batch_size or min(128, len(data)), settings.seed), text


def _total(settings: Settings, batches: Batches) -> int:
    if settings.steps is not None:
        return settings.steps
    if batches.steps_per_epoch is None:
        raise TrainingError("this data does not know its length, so epochs= means nothing; give steps=")
    assert settings.epochs is not None
    return settings.epochs * batches.steps_per_epoch
