"""Training a network on poisoned data, to have something to clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import training
from layerscope.data import Dataset
from layerscope.methods.medic.attacks.poison import Poisoned
from layerscope.training.evaluation import modes_kept


@dataclass(frozen=True)
class PGD:
    """Steps of sign gradient ascent on the loss, within an L-infinity ball, images in [0, 1].

    Source: Madry et al. 2018, arXiv 1706.06083; in a clean-label attack (Turner, Tsipras, Madry 2019, arXiv 1912.02771)
    it makes target-class images hard to classify by content, so that the network leans on the trigger.
    """

    eps: float = 16 / 255
    step: float = 2 / 255
    steps: int = 10

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Images within ``eps`` of ``x`` that ``model``, in evaluation mode, finds harder; nothing else changes."""
        low, high = value_range
        scale = high - low
        moved = x.detach().clone()
        with modes_kept(model):
            model.eval()
            for _ in range(self.steps):
                moved.requires_grad_(True)
                (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), y, reduction="sum"), moved)
                moved = moved.detach() + self.step * scale * slope.sign()
                moved = (x + (moved - x).clamp(-self.eps * scale, self.eps * scale)).clamp(low, high)
        return moved.detach()


def train_poisoned(
    model: nn.Module, poisoned: Poisoned, *, adversary: PGD | None = None, **options: Any
) -> training.History:
    """Train a network on poisoned data, in place: the augmentation first, the trigger last, at its fixed place.

    Args:
        model: any classifier.
        poisoned: the data.
        adversary: moves the triggered images against the network in training: with ``mode="clean"`` the Clean Label
            attack.
        options: of :func:`layerscope.training.fit`.
    """

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, marked = poisoned.apply(*batch)
        if adversary is not None and bool(marked.any()):
            x = x.clone()
            x[marked] = adversary(net, x[marked], y[marked], poisoned.value_range)
        logits = net(x)
        return F.cross_entropy(logits, y), {"accuracy": (logits.detach().argmax(1) == y).float().mean()}

    return training.fit(model, numbered(poisoned.data), step_fn=step, **options)


def numbered(data: Dataset) -> Dataset:
    """The data with each sample's index in place of its label."""
    return Dataset(data.name, data.x, torch.arange(len(data), device=data.x.device), len(data))
