"""One step of cloning: cross entropy of the student, and its distance to the teacher where that matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods.medic.report import TapReport
from layerscope.methods.medic.taps import Reading, Tap
from layerscope.methods.medic.weights import (
    LOOKS,
    SMALLEST_SIGMA,
    Importance,
    Kind,
    criteria,
    effective_count,
    importance,
    scale_of,
    weighted_distances,
    wide,
)
from layerscope.probe.outputs import pick

Statistics = Mapping[str, tuple[Tensor, Tensor]]


class Teacher:
    """The frozen teacher while its taps are read: gives targets and weights for a batch, both without a graph."""

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[Tap],
        reading: Reading,
        statistics: Statistics,
        kind: Kind | Importance,
        *,
        per_sample: bool,
        sharpness: float,
    ) -> None:
        """See :func:`layerscope.methods.medic.clone` for the settings.

        Args:
            network: in evaluation mode, no parameter needs a gradient.
            taps: where to read.
            reading: filled by the network's forward passes.
            statistics: tap name -> (mu, sigma).
            kind: of the importance.
            per_sample: take each sample's own loss gradient, not that of the batch's mean.
            sharpness: tau.
        """
        self.network, self.taps, self.reading, self.statistics, self.kind = network, taps, reading, statistics, kind
        self.per_sample, self.sharpness = per_sample, sharpness
        self.uses_impact = callable(kind) or LOOKS.get(kind, (True, True))[1]
        self.inverse = {name: 1 / sigma.clamp_min(SMALLEST_SIGMA) for name, (_, sigma) in statistics.items()}
        self.first: dict[str, tuple[int, float | None, float | None, float]] = {}

    def __call__(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(compared activations, weights)`` by tap name for a batch."""
        # the parameters are frozen: the input carries the graph to the taps
        x = x.detach().requires_grad_(self.uses_impact)
        with torch.set_grad_enabled(self.uses_impact):
            logits = pick(self.network(x), None)
        reading = self.reading
        grads: Sequence[Tensor | None] = [None] * len(self.taps)
        if self.uses_impact:
            loss = F.cross_entropy(wide(logits), y, reduction="sum" if self.per_sample else "mean")
            grads = torch.autograd.grad(loss, [reading.compared[t.name] for t in self.taps], allow_unused=True)
        targets, weights = {}, {}
        for tap, grad in zip(self.taps, grads, strict=True):
            mu, sigma = self.statistics[tap.name]
            z = (wide(reading.at[tap.name].detach()) - mu) * self.inverse[tap.name]
            g = None
            if self.uses_impact:
                g = torch.zeros_like(z) if grad is None else wide(grad) * sigma
            w = importance(z, g, self.sharpness, self.kind)
            targets[tap.name], weights[tap.name] = reading.compared[tap.name].detach(), w
            if tap.name not in self.first:
                self.first[tap.name] = self._described(z, g, w)
        reading.clear()
        return targets, weights

    def _described(self, z: Tensor, g: Tensor | None, w: Tensor) -> tuple[int, float | None, float | None, float]:
        size, total = z[0].numel(), float(w.flatten(1).sum(1).mean())
        if callable(self.kind):
            return size, None, None, total
        by_activation, by_impact = LOOKS[self.kind]
        log_p, log_q = criteria(z, g, self.sharpness, self.kind)
        return (
            size,
            effective_count(log_p) if by_activation else None,
            effective_count(log_q) if by_impact else None,
            total,
        )

    def reports(self, losses: Mapping[str, tuple[float, ...]]) -> tuple[TapReport, ...]:
        """One report a tap, with its losses by epoch."""
        found = []
        for tap in self.taps:
            size, by_activation, by_impact, total = self.first[tap.name]
            dead = int((self.statistics[tap.name][1] <= SMALLEST_SIGMA).sum())
            found.append(TapReport(tap.name, tap.kind, size, by_activation, by_impact, total, dead, losses[tap.name]))
        return tuple(found)


class CloneStep:
    """``(student, batch) -> (loss, numbers)`` for :func:`layerscope.training.fit`."""

    def __init__(self, teacher: Teacher, reading: Reading, clone_weight: float) -> None:
        """Compare with ``teacher``; ``reading`` is filled by the student's forward passes."""
        self.teacher, self.reading, self.clone_weight = teacher, reading, clone_weight
        self.scales = {name: scale_of(sigma) for name, (_, sigma) in teacher.statistics.items()}
        self.parts: list[Tensor] = []
        """The clone loss of every tap, one vector a step, on the device."""

    def __call__(self, student: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy plus clone weight times clone loss."""
        x, y = batch
        targets, weights = self.teacher(x, y)
        logits = pick(student(x), None)
        total, parts = weighted_distances(targets, self.reading.compared, weights, self.scales)
        self.reading.clear()
        self.parts.append(torch.stack(list(parts.values())).detach())
        entropy = F.cross_entropy(logits, y)
        numbers = {"accuracy": accuracy(logits, y), "cross_entropy": entropy.detach(), "clone": total.detach()}
        return entropy + self.clone_weight * total, numbers

    def state_dict(self) -> dict[str, Any]:
        """The record so far, for a checkpoint: losses [steps, taps], and the criteria on the first batch."""
        return {"parts": torch.stack(self.parts).cpu() if self.parts else None, "first": dict(self.teacher.first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        here = next(iter(self.scales.values())).device
        self.parts = [] if state["parts"] is None else list(state["parts"].to(here))
        self.teacher.first = dict(state["first"])

    def by_tap(self, per_epoch: int) -> dict[str, tuple[float, ...]]:
        """Tap name -> its part of the clone loss, mean of every epoch."""
        means = [torch.stack(self.parts[i : i + per_epoch]).mean(0) for i in range(0, len(self.parts), per_epoch)]
        series = torch.stack(means).T.tolist()
        return {tap.name: tuple(losses) for tap, losses in zip(self.teacher.taps, series, strict=True)}


def plain_step(student: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy alone: what is left of cloning at clone weight 0."""
    x, y = batch
    logits = pick(student(x), None)
    entropy = F.cross_entropy(logits, y)
    return entropy, {"accuracy": accuracy(logits, y), "cross_entropy": entropy.detach()}


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the batch that is classified right."""
    return (logits.detach().argmax(1) == y).float().mean()
