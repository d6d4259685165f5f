"""Neural attention distillation: the tuned copy teaches the suspicious one where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods.medic.baselines.tuning import FineTune, trainable, tuned
from layerscope.methods.medic.checks import as_clean, private_copy
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.taps import Tap, suggest_taps, tapped
from layerscope.probe.outputs import pick
from layerscope.training.augment import Augment
from layerscope.training.evaluation import home


def attention(a: Tensor, channel_axis: int = 1) -> Tensor:
    """Sum over channels of the squared activations, [B, C, H, W] -> [B, H W], unit length per sample."""
    return F.normalize(a.square().sum(channel_axis).flatten(1), dim=1)


@dataclass(frozen=True)
class NAD:
    """CE + sum_l beta_l MSE(attention of a fine-tuned teacher, attention of the student).

    At the last norm of each of the last resolutions, one for every beta, the last beta at the last one.
    Source: Li et al., "Neural Attention Distillation", ICLR 2021, arXiv 2101.05930.
    """

    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    lr: float = 0.01
    epochs: int = 20
    teacher_epochs: int = 10
    batch_size: int = 64
    augment: str | Augment | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The tuned copy."""
        data = as_clean(clean)
        teacher = private_copy(FineTune(self.lr, self.teacher_epochs, self.batch_size, self.augment)(model, data, seed))
        student = trainable(model)
        device, _ = home(teacher)
        taps = stage_ends(teacher, data.x[:2].to(device))[-len(self.betas) :]
        betas = self.betas[-len(taps) :]
        with tapped(teacher, taps) as theirs, tapped(student, taps) as ours:

            def step(net: nn.Module, batch: Any) -> Tensor:
                x, y = batch
                with torch.no_grad():
                    teacher(x)
                loss = F.cross_entropy(pick(net(x), None), y)
                for tap, beta in zip(taps, betas, strict=True):
                    wanted, found = (attention(r.compared[tap.name], tap.channel_axis) for r in (theirs, ours))
                    loss = loss + beta * F.mse_loss(found, wanted)
                return loss

            return tuned(
                student, data, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, augment=self.augment,
                seed=seed, step=step,
            )  # fmt: skip


def stage_ends(model: nn.Module, example: Tensor) -> Sequence[Tap]:
    """The last norm (or convolution, where there is none) of every resolution, in execution order.

    Raises:
        MedicError: there is no layer with a map.
    """
    taps = suggest_taps(model, "conv+norm", example)
    taps = [t for t in taps if t.kind != "conv"] or taps
    with torch.no_grad(), tapped(model, taps) as reading:
        model(example)
        sizes = {tap.name: reading.at[tap.name].movedim(tap.channel_axis, 1).shape[2:] for tap in taps}
    last = {sizes[tap.name]: tap for tap in taps if len(sizes[tap.name]) == 2}
    if not last:
        raise MedicError(f"{type(model).__name__} has no layer with a map to attend to")
    return [tap for tap in taps if tap in last.values()]
