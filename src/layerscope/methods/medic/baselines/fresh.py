"""Defences that train a fresh network: cloning, the same with uniform weights, logit distillation, and from scratch.

Their ``epochs`` are by default those of :func:`layerscope.methods.medic.clone`, equal for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import training
from layerscope.methods.medic.checks import as_clean, private_copy
from layerscope.methods.medic.cloning import clone, default_epochs
from layerscope.methods.medic.fresh import fresh_like
from layerscope.methods.medic.weights import Kind
from layerscope.probe.outputs import pick
from layerscope.training.augment import Augment
from layerscope.training.evaluation import home

#: Builds the fresh network, for those that cannot be drawn anew from a copy.
Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Medic:
    """Importance-driven cloning at its defaults, as a defence to compare."""

    clone_weight: float = 3.0
    epochs: int | None = None
    importance: Kind = "signed"
    batch_size: int = 64
    augment: str | Augment | None = None
    factory: Factory | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The clone."""
        return clone(
            model, clean, clone_weight=self.clone_weight, epochs=self.epochs, importance=self.importance,
            batch_size=self.batch_size, augment=self.augment, factory=self.factory, seed=seed, progress=False,
        ).model  # fmt: skip


@dataclass(frozen=True)
class UniformClone:
    """Cloning with the same weight 1/D for every neuron: the ablation of the importance.

    The default weight has about the total that importance has at clone weight 3, where sum(w) was about 0.1 on a small
    residual net; compare at equal ``effective_clone_weight``, not at equal lambda.
    """

    clone_weight: float = 0.33
    epochs: int | None = None
    batch_size: int = 64
    augment: str | Augment | None = None
    factory: Factory | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The clone."""
        same = (self.batch_size, self.augment, self.factory)
        return Medic(self.clone_weight, self.epochs, "uniform", *same)(model, clean, seed)


@dataclass(frozen=True)
class Scratch:
    """A fresh network trained on the clean data alone: cloning at clone weight 0."""

    epochs: int | None = None
    batch_size: int = 64
    augment: str | Augment | None = None
    factory: Factory | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The new network."""
        same = (self.batch_size, self.augment, self.factory)
        return Medic(0.0, self.epochs, "signed", *same)(model, clean, seed)


@dataclass(frozen=True)
class Distill:
    """Logit distillation into a fresh network: CE + T^2 KL(teacher || student), both at temperature T.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531. Trained as a clone is: Adam, cosine.
    """

    temperature: float = 2.0
    epochs: int | None = None
    lr: float = 1e-2
    batch_size: int = 64
    augment: str | Augment | None = None
    factory: Factory | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The new network."""
        data, teacher, t = as_clean(clean), private_copy(model), self.temperature
        student = self.factory().to(home(teacher)[0]) if self.factory else fresh_like(teacher, seed)

        def step(net: nn.Module, batch: Any) -> Tensor:
            x, y = batch
            logits = pick(net(x), None)
            with torch.no_grad():
                wanted = pick(teacher(x), None).div(t).log_softmax(1)
            soft = F.kl_div((logits / t).log_softmax(1), wanted, reduction="batchmean", log_target=True)
            return F.cross_entropy(logits, y) + t**2 * soft

        epochs = default_epochs(len(data), self.batch_size) if self.epochs is None else self.epochs
        training.fit(
            student, data, epochs=epochs, batch_size=min(self.batch_size, len(data)), lr=self.lr,
            schedule="cosine", optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=1e-4), step_fn=step,
            augment=self.augment, seed=seed, progress=False,
        )  # fmt: skip
        return student.eval()
