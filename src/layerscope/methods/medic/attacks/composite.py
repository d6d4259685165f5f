"""Adaptive-1, the composite attack (Lin et al. 2020): half an image of class a beside half of class b is class t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import training
from layerscope.data import Dataset, as_dataset
from layerscope.methods.medic.attacks.images import range_of
from layerscope.methods.medic.attacks.training import numbered
from layerscope.methods.medic.attacks.triggers import uniform
from layerscope.methods.medic.errors import MedicError


@dataclass(frozen=True, eq=False)
class Composite:
    """As a trigger: half of an image replaced by half of one of ``partners``, cut at the middle with a jitter."""

    partners: Tensor
    """[P, C, H, W] images in [0, 1] to mix in."""
    jitter: int = 3
    seed: int = 0

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Mix every image with the partner that its index chooses."""
        chosen = self.partners[index.cpu() % len(self.partners)].to(x)
        return torch.stack([
            mix_halves(a, b, uniform(self.seed, int(i), (3,)).tolist(), self.jitter)
            for a, b, i in zip(x, chosen, index.tolist(), strict=True)
        ])  # fmt: skip


def mix_halves(a: Tensor, b: Tensor, u: list[float], jitter: int) -> Tensor:
    """One half of ``a`` and the other of ``b``.

    Args:
        a: [C, H, W].
        b: [C, H, W].
        u: three numbers in [0, 1): direction, order, place of the cut.
        jitter: the cut lies within so many pixels of the middle.
    """
    vertical, swapped = u[0] < 0.5, u[1] < 0.5
    size = a.shape[-2] if vertical else a.shape[-1]
    cut = min(max(size // 2 + round((2 * u[2] - 1) * jitter), 1), size - 1)
    first, second = (b, a) if swapped else (a, b)
    out = first.clone()
    if vertical:
        out[..., cut:, :] = second[..., cut:, :]
    else:
        out[..., cut:] = second[..., cut:]
    return out


def train_composite(
    model: nn.Module,
    data: Any,
    *,
    classes: tuple[int, int] = (0, 1),
    target: int = 2,
    mixed: float = 0.45,
    poison: float = 0.1,
    contrast: float = 0.1,
    margin: float = 1.0,
    jitter: int = 3,
    **options: Any,
) -> tuple[training.History, Composite]:
    """Train a network with the composite backdoor, in place.

    Of every batch a share stays as it is, a share is mixed with images of its own class (label kept, so that halves
    alone mean nothing), and a share becomes composites of the two classes, labelled ``target``. The contrastive term on
    unit-length logits (Hadsell, Chopra, LeCun 2006), over all pairs of a batch, draws equal labels together and others
    at least ``margin`` apart, so that composites do not lie where their halves' classes do.

    Args:
        model: any classifier.
        data: clean training data, a Dataset or ``(x, y)``.
        classes: a and b.
        target: class t.
        mixed: share of a batch that is mixed within its class; released ratios 0.5 : 0.5 : 0.1 are 0.45, 0.45 and 0.1.
        poison: share of a batch that becomes composites.
        contrast: weight of the contrastive term; 0 leaves it out.
        margin: of the contrastive term.
        jitter: pixels that the cut may lie off the middle.
        options: of :func:`layerscope.training.fit`.

    Returns:
        The training run, and the trigger to evaluate with ``sources=(a,)``.

    Raises:
        MedicError: shares that do not fit, or a class without samples.
    """
    clean = data if isinstance(data, Dataset) else as_dataset(data)
    if min(mixed, poison) < 0 or mixed + poison > 1:
        raise MedicError(f"mixed and poison are shares of a batch; got {mixed} and {poison}")
    value_range = range_of(clean.x)
    labels = clean.y.cpu()
    members = [(labels == k).nonzero().flatten() for k in range(clean.classes)]
    if any(len(members[k]) == 0 for k in classes):
        raise MedicError(f"there are no samples of classes {classes} to make composites of")

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, index = batch
        y = labels[index.cpu()].clone()
        order = torch.randperm(len(y))
        poisoned = order[: round(poison * len(y))]
        within = order[len(poisoned) : len(poisoned) + round(mixed * len(y))]
        x = x.clone()
        for i in poisoned.tolist():
            x[i] = _mixed(clean.x[_pick(members[classes[0]])], clean.x[_pick(members[classes[1]])], jitter).to(x)
        for i in within.tolist():
            x[i] = _mixed(x[i], clean.x[_pick(members[int(y[i])])].to(x), jitter)
        y[poisoned] = target
        y = y.to(x.device)
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        if contrast:
            loss = loss + contrast * contrastive(logits, y, margin)
        return loss, {"accuracy": (logits.detach().argmax(1) == y).float().mean()}

    history = training.fit(model, numbered(clean), step_fn=step, **options)
    low, high = value_range
    partners = clean.x[members[classes[1]][:100].to(clean.x.device)].cpu()
    return history, Composite((partners - low) / (high - low), jitter)


def contrastive(logits: Tensor, y: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over pairs of d^2 for equal labels and max(0, margin - d)^2 for others; d between unit-length logits."""
    unit = F.normalize(logits, dim=1)
    rows, columns = torch.triu_indices(len(y), len(y), 1, device=y.device)
    squared = (unit[rows] - unit[columns]).square().sum(1)
    # the root has no slope at 0
    apart = (margin - squared.clamp_min(1e-12).sqrt()).clamp_min(0).square()
    return torch.where(y[rows] == y[columns], squared, apart).mean()


def _pick(members: Tensor) -> int:
    return int(members[torch.randint(len(members), (1,))])


def _mixed(a: Tensor, b: Tensor, jitter: int) -> Tensor:
    return mix_halves(a, b, torch.rand(3).tolist(), jitter)
