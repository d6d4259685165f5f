"""Optimizers by name, and parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from layerscope.errors import SpecError, TrainingError, did_you_mean
from layerscope.spec import Spec, parse_spec

#: A network's parameters in groups, each with its own settings (``lr``, ``weight_decay``, ...).
Groups = Callable[[nn.Module], Iterable[Mapping[str, Any]]]
#: (parameters or groups, learning rate) -> optimizer
OptimizerMaker = Callable[[Any, float], Optimizer]

_NAMED: dict[str, dict[str, float | bool]] = {
    "sgd": {"nesterov": False},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
}


def decay_matrices_only(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and kernels decay, vectors and scalars (biases, norms, gains) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    spec: str | Spec | OptimizerMaker,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    groups: Groups | None,
) -> Optimizer:
    """The optimizer for a network's trainable parameters.

    Args:
        model: whose parameters.
        spec: ``sgd``, ``sgd:nesterov=true``, ``adamw:beta2=0.95``, or a function (parameters, lr) -> Optimizer.
        lr: base learning rate; a group with an ``lr`` of its own keeps it.
        momentum: of ``sgd``.
        weight_decay: as torch defines it: added to the gradient by ``sgd``, decoupled in ``adamw``.
        groups: splits the parameters; one group with all of them by default.

    Raises:
        SpecError: unknown optimizer or parameter.
        TrainingError: nothing to train.
    """
    parameters: list[Any] = (
        [dict(group) for group in groups(model)] if groups else [p for p in model.parameters() if p.requires_grad]
    )
    if groups:
        parameters = [group | {"params": list(group["params"])} for group in parameters]
        parameters = [group for group in parameters if group["params"]]
    if not parameters:
        raise TrainingError("this network has no trainable parameters: is requires_grad off everywhere?")
    if not isinstance(spec, str | Spec):
        return spec(parameters, lr)
    name, extra = _read(spec)
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=bool(extra["nesterov"])
        )
    betas = (float(extra["beta1"]), float(extra["beta2"]))
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=float(extra["eps"]), weight_decay=weight_decay)


def _read(spec: str | Spec) -> tuple[str, dict[str, Any]]:
    read = parse_spec(spec) if isinstance(spec, str) else spec
    if read.name not in _NAMED:
        raise SpecError(f"no optimizer {read.name!r}: {did_you_mean(read.name, _NAMED)}, or pass a function")
    defaults = _NAMED[read.name]
    for key, value in read.params:
        if key not in defaults:
            raise SpecError(f"optimizer {read.name} has no parameter {key!r}: {did_you_mean(key, defaults)}")
        if isinstance(value, str) or isinstance(value, bool) != isinstance(defaults[key], bool):
            raise SpecError(
                f"optimizer {read}: {key}={value} is not {'true or false' if key == 'nesterov' else 'a number'}"
            )
    return read.name, {**defaults, **read.kwargs}
