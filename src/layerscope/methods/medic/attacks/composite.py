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
        chosen = self.partners.to(x)[index.to(x.device) % len(self.partners)]
        return mix_halves(x, chosen, uniform(self.seed, index.to(x.device), 3), self.jitter)


def mix_halves(a: Tensor, b: Tensor, u: Tensor, jitter: int) -> Tensor:
    """One half of each image of ``a`` and the other of its partner in ``b``.

    Args:
        a: [B, C, H, W].
        b: [B, C, H, W].
        u: [B, 3] in [0, 1): direction, order, place of the cut.
        jitter: the cut lies within so many pixels of the middle.
    """
    height, width = a.shape[-2:]
    vertical, swapped, place = (u[:, 0] < 0.5), (u[:, 1] < 0.5), ((2 * u[:, 2] - 1) * jitter).round()

    def past(size: int) -> Tensor:
        cut = (size // 2 + place).clamp(1, size - 1)
        return torch.arange(size, device=a.device) >= cut[:, None]

    second = torch.where(vertical.view(-1, 1, 1), past(height)[:, :, None], past(width)[:, None, :])
    return torch.where((second != swapped.view(-1, 1, 1))[:, None], b, a)


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
    low, high = range_of(clean.x)
    labels = clean.y
    # samples by class, in one row: those of class k are the counts[k] ones from starts[k] on
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=clean.classes)
    starts = counts.cumsum(0) - counts
    if any(counts[k] == 0 for k in classes):
        raise MedicError(f"there are no samples of classes {classes} to make composites of")
    tables: dict[torch.device, tuple[Tensor, ...]] = {}

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, index = batch
        at = x.device
        images, label, by_class, n, first = tables.setdefault(
            at, tuple(t.to(at) for t in (clean.x, labels, order, counts, starts))
        )

        def picked(k: Tensor) -> Tensor:
            place = (torch.rand(len(k)).to(at) * n[k]).long()
            return images[by_class[first[k] + place]]

        y = label[index]
        poisoned, within = round(poison * len(y)), round(mixed * len(y))
        # batches come in random order, so the first samples are as good as any
        composites = torch.arange(len(y), device=at) < poisoned
        x = torch.where(composites.view(-1, 1, 1, 1), picked(torch.full_like(y, classes[0])), x)
        partner = torch.where(composites, classes[1], y)
        mixes = mix_halves(x, picked(partner), torch.rand(len(y), 3).to(at), jitter)
        x = torch.where((torch.arange(len(y), device=at) < poisoned + within).view(-1, 1, 1, 1), mixes, x)
        y = torch.where(composites, target, y)
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        if contrast:
            loss = loss + contrast * contrastive(logits, y, margin)
        return loss, {"accuracy": (logits.detach().argmax(1) == y).float().mean()}

    history = training.fit(model, numbered(clean), step_fn=step, **options)
    partners = clean.x[(labels == classes[1]).nonzero().flatten()[:100]].cpu()
    return history, Composite((partners - low) / (high - low), jitter)


def contrastive(logits: Tensor, y: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over pairs of d^2 for equal labels and max(0, margin - d)^2 for others; d between unit-length logits."""
    unit = F.normalize(logits, dim=1)
    rows, columns = torch.triu_indices(len(y), len(y), 1, device=y.device)
    squared = (unit[rows] - unit[columns]).square().sum(1)
    # the root has no slope at 0
    apart = (margin - squared.clamp_min(1e-12).sqrt()).clamp_min(0).square()
    return torch.where(y[rows] == y[columns], squared, apart).mean()
