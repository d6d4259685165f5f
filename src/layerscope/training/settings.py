"""Everything that makes a training run what it is, checked before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from layerscope.errors import TrainingError, did_you_mean
from layerscope.probe.outputs import Select
from layerscope.spec import Spec
from layerscope.training.augment import Augment
from layerscope.training.optimizers import Groups, OptimizerMaker
from layerscope.training.schedules import Schedule
from layerscope.training.seeds import digest
from layerscope.training.steps import LossFn, StepFn

Amp = Literal["bfloat16", "float16"]


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`layerscope.training.fit` that change what is computed.

    Raises:
        TrainingError: on making one with numbers out of range or combinations that mean nothing.
    """

    steps: int | None
    epochs: int | None
    batch_size: int | None
    optimizer: str | Spec | OptimizerMaker
    lr: float
    momentum: float
    weight_decay: float
    groups: Groups | None
    schedule: str | Spec | Schedule
    warmup: int
    clip: float | None
    amp: Amp | None
    channels_last: bool
    accumulate: int
    seed: int
    loss: str | LossFn
    output: Select
    step_fn: StepFn | None
    loss_limit: float
    augment: str | Augment | None
    eval_every: int | None
    log_every: int
    checkpoint_every: int | None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise TrainingError("give exactly one of steps= and epochs=")
        for name in ("steps", "epochs", "batch_size", "accumulate", "eval_every", "log_every", "checkpoint_every"):
            _whole(name, getattr(self, name), 1)
        _whole("warmup", self.warmup, 0)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TrainingError(f"seed={self.seed!r} is not a whole number")
        for name, low in (("lr", 0.0), ("momentum", 0.0), ("weight_decay", 0.0), ("clip", 0.0), ("loss_limit", 0.0)):
            _number(name, getattr(self, name), low)
        if self.clip == 0:
            raise TrainingError("clip=0 would remove every gradient; leave it out for no clipping")
        if self.amp is not None and self.amp not in get_args(Amp):
            raise TrainingError(f"amp={self.amp!r}: {did_you_mean(str(self.amp), get_args(Amp))}")
        if self.step_fn is not None and self.loss != "cross_entropy":
            raise TrainingError("give loss= or step_fn=, not both: a step function computes its own loss")

    def described(self, model: nn.Module, data: str, total: int) -> dict[str, str]:
        """The settings as text, with what is trained on what: two runs with the same text compute the same thing."""
        text = {
            name: _text(getattr(self, name))
            for name in self.__dataclass_fields__
            if name not in ("steps", "epochs", "log_every", "checkpoint_every")
        }
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        text |= {
            "network": f"{type(model).__name__} with {trained} trainable parameters ({digest(repr(model))})",
            "data": data,
        }
        return text | {"steps": str(total)}


def device_of(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where to train: the wished device, or where the network is.

    Raises:
        TrainingError: no such device on this machine.
    """
    if device is None:
        first = next(model.parameters(), None)
        return torch.device("cpu") if first is None else first.device
    try:
        wished = torch.device(device)
        torch.empty(0, device=wished)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return wished


def _whole(name: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise TrainingError(f"{name}={value!r} is not a whole number of at least {least}")


def _number(name: str, value: Any, low: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < low:
        raise TrainingError(f"{name}={value!r} is not a number of at least {low:g}")


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | Spec):
        return str(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))
