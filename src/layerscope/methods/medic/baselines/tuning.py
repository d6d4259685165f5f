"""Defences that go on training the suspicious weights: fine-tuning, sharpness-aware and feature-shift tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import training
from layerscope.methods.medic.checks import as_clean, private_copy
from layerscope.methods.medic.errors import MedicError
from layerscope.probe.outputs import pick
from layerscope.training.augment import Augment
from layerscope.training.steps import StepFn


def tuned(
    net: nn.Module, clean: Any, *, lr: float, epochs: int, batch_size: int, augment: str | Augment | None, seed: int,
    step: StepFn | None = None, callbacks: Sequence[training.Callback] = (),
) -> nn.Module:  # fmt: skip
    """``net`` trained in place: SGD with Nesterov momentum 0.9, weight decay 5e-4, cosine; in evaluation mode."""
    data = as_clean(clean)
    training.fit(
        net, data, epochs=epochs, batch_size=min(batch_size, len(data)), lr=lr, weight_decay=5e-4, schedule="cosine",
        optimizer="sgd:nesterov=true", step_fn=step, augment=augment, seed=seed, callbacks=callbacks, progress=False,
    )  # fmt: skip
    return net.eval()


def trainable(model: nn.Module) -> nn.Module:
    """A copy to tune."""
    return private_copy(model).requires_grad_(True)


def classifier_of(net: nn.Module) -> nn.Linear:
    """The last linear layer.

    Raises:
        MedicError: there is none.
    """
    found = [m for m in net.modules() if isinstance(m, nn.Linear)]
    if not found:
        raise MedicError(f"{type(net).__name__} has no linear layer, and this defence works on the classifier")
    return found[-1]


@dataclass(frozen=True)
class FineTune:
    """Plain fine-tuning. Report a range of rates: clean accuracy prefers low ones, which keep the backdoor."""

    lr: float = 0.01
    epochs: int = 20
    batch_size: int = 64
    augment: str | Augment | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The tuned copy."""
        return tuned(
            trainable(model), clean, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size,
            augment=self.augment, seed=seed,
        )  # fmt: skip


@dataclass(frozen=True)
class FTSAM:
    """Fine-tuning at the worst weights nearby: w + rho T^2 g / |T g| with T = |w| + 0.01, labels smoothed by 0.1.

    Running statistics come from the pass at the weights themselves alone.

    Source: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023;
    adaptive sharpness after Kwon et al. 2021, arXiv 2102.11600.
    """

    rho: float = 2.0
    lr: float = 0.01
    epochs: int = 20
    smoothing: float = 0.1
    batch_size: int = 64
    augment: str | Augment | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The tuned copy."""
        net = trainable(model)
        weights = list(net.parameters())
        state = [*weights, *net.buffers()]
        home: list[Tensor] = []

        def loss_of(batch: Any) -> Tensor:
            return F.cross_entropy(pick(net(batch[0]), None), batch[1], label_smoothing=self.smoothing)

        def step(_: nn.Module, batch: Any) -> Tensor:
            slopes = torch.autograd.grad(loss_of(batch), weights)
            with torch.no_grad():
                scaled = [(w.abs() + 0.01) * g for w, g in zip(weights, slopes, strict=True)]
                norm = torch.stack([s.norm() for s in scaled]).norm().clamp_min(1e-12)
                home[:] = [t.clone() for t in state]
                for w, s in zip(weights, scaled, strict=True):
                    w.add_(self.rho / norm * (w.abs() + 0.01) * s)
            return loss_of(batch)

        class Back(training.Callback):
            def on_gradients(self, run: training.Run) -> None:
                with torch.no_grad():
                    for t, before in zip(state, home, strict=True):
                        t.copy_(before)

        return tuned(
            net, clean, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, augment=self.augment, seed=seed,
            step=step, callbacks=[Back()],
        )  # fmt: skip


@dataclass(frozen=True)
class FST:
    """Feature shift tuning: a classifier drawn anew, CE + alpha <W, W_before>, W kept at its old norm.

    Source: Min, Qin, Shen, Cheng, "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023,
    arXiv 2310.01875.
    """

    alpha: float = 0.2
    lr: float = 0.01
    epochs: int = 10
    batch_size: int = 64
    augment: str | Augment | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The tuned copy."""
        net = trainable(model)
        head = classifier_of(net)
        before = head.weight.detach().clone()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            head.reset_parameters()

        def step(_: nn.Module, batch: Any) -> Tensor:
            return F.cross_entropy(pick(net(batch[0]), None), batch[1]) + self.alpha * (head.weight * before).sum()

        class Rescale(training.Callback):
            def on_step(self, run: training.Run) -> None:
                with torch.no_grad():
                    head.weight *= before.norm() / head.weight.norm().clamp_min(1e-12)

        return tuned(
            net, clean, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, augment=self.augment, seed=seed,
            step=step, callbacks=[Rescale()],
        )  # fmt: skip
