"""A 3 x 3 patch trained in turn with the network, so that it acts on important neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import training
from layerscope.methods.medic.attacks.poison import Poisoned
from layerscope.methods.medic.attacks.training import numbered
from layerscope.methods.medic.attacks.triggers import generator
from layerscope.methods.medic.checks import private_copy
from layerscope.methods.medic.step import Teacher
from layerscope.methods.medic.taps import suggest_taps, tap_statistics, tapped
from layerscope.methods.medic.weights import clone_loss
from layerscope.training.evaluation import modes_kept
from layerscope.training.settings import device_of


@dataclass(frozen=True)
class Patch:
    """A fixed patch in the top-left corner."""

    pixels: tuple[tuple[tuple[float, ...], ...], ...]
    """[C][h][w] in [0, 1]."""

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Stamp the corner."""
        pattern = torch.tensor(self.pixels, dtype=x.dtype, device=x.device)
        out = x.clone()
        out[..., : pattern.shape[-2], : pattern.shape[-1]] = pattern
        return out


def train_adaptive(
    model: nn.Module,
    data: Any,
    *,
    target: int,
    rate: float = 0.05,
    size: int = 3,
    trigger_lr: float = 0.1,
    sharpness: float = 5.0,
    seed: int = 0,
    **options: Any,
) -> Patch:
    """Train a network, in place, in alternation with a patch: one poisoned step, one step of the patch.

    The patch, through a sigmoid, climbs on the importance-weighted difference between triggered and clean inputs,

        sum_l mean_b sum_i w_l(x) ((A_l(x + patch) - A_l(x)) / sigma_l)^2 ,

    in the network as it stands; its statistics are taken anew at the start of every epoch.

    Args:
        model: any classifier.
        data: clean training data, a Dataset or ``(x, y)``.
        target: class t.
        rate: share of the data that is triggered.
        size: of the patch, in pixels.
        trigger_lr: of the patch (Adam).
        sharpness: tau of the importance.
        seed: of the patch and of everything else.
        options: of :func:`layerscope.training.fit`.

    Returns:
        The patch as it is at the end.
    """
    poisoned = Poisoned(data, lambda x, index: stamped(x), target=target, rate=rate, seed=seed)
    clean, (low, high) = poisoned.data, poisoned.value_range
    at = device_of(model, options.get("device"))
    logit = torch.randn(clean.x.shape[1], size, size, generator=generator(seed)).to(at).requires_grad_(True)
    climber = torch.optim.Adam([logit], lr=trigger_lr)

    def stamped(x: Tensor) -> Tensor:
        frame = (0, x.shape[-1] - size, 0, x.shape[-2] - size)
        mask = F.pad(torch.ones(1, size, size, device=x.device, dtype=x.dtype), frame)
        return x * (1 - mask) + F.pad(logit.sigmoid().to(x), frame) * mask

    class Climb(training.Callback):
        def __init__(self) -> None:
            self.order = torch.Generator().manual_seed(seed)
            self.renew(model)

        def renew(self, network: nn.Module) -> None:
            frozen = private_copy(network, at)
            self.taps = suggest_taps(frozen, "conv+norm", clean.x[:2].to(at))
            self.statistics = tap_statistics(frozen, clean.x[:1000].to(at), self.taps)

        def on_epoch(self, run: training.Run) -> None:
            self.renew(run.model)

        def on_step(self, run: training.Run) -> None:
            network = run.model
            index = torch.randperm(len(clean), generator=self.order)[:32].to(clean.x.device)
            x, y = clean.x[index].to(at), clean.y[index].to(at)
            with modes_kept(network), tapped(network, self.taps) as reading:
                network.eval()
                teacher = Teacher(
                    network, self.taps, reading, self.statistics, "signed", per_sample=True, sharpness=sharpness
                )
                targets, weights = teacher(x, y)
                network(stamped((x - low) / (high - low)) * (high - low) + low)
                sigmas = {name: sigma for name, (_, sigma) in self.statistics.items()}
                gain, _ = clone_loss(targets, dict(reading.compared), weights, sigmas)
            (slope,) = torch.autograd.grad(gain, logit)
            logit.grad = -slope
            climber.step()

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            x, y, _ = poisoned.apply(*batch)
        logits = net(x)
        return F.cross_entropy(logits, y), {"accuracy": (logits.detach().argmax(1) == y).float().mean()}

    training.fit(model, numbered(clean), step_fn=step, seed=seed, callbacks=[Climb()], **options)
    return Patch(tuple(tuple(tuple(row) for row in plane) for plane in logit.detach().sigmoid().tolist()))
