"""The numbers of a run while it is under way: fetched from the device in bulk, and checked for divergence in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layerscope.training.history import Evaluation, History

_Metrics = dict[str, Any]


class Record:
    """One entry a step. Numbers stay on the device until :meth:`fetch`; nothing after a divergence is kept."""

    def __init__(self, loss_limit: float) -> None:
        self.loss_limit = loss_limit
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.metrics: dict[str, list[float]] = {}
        self.evaluations: list[Evaluation] = []
        self.diverged_at: int | None = None
        self._waiting: list[tuple[Tensor, float, _Metrics]] = []

    def add(self, loss: Tensor, lr: float, metrics: _Metrics) -> None:
        """The numbers of one more step, still on the device."""
        self._waiting.append((loss, lr, metrics))

    def fetch(self) -> None:
        """Bring what is waiting over from the device; find the first step that diverged."""
        waiting, self._waiting = self._waiting, []
        for (loss, metrics), (_, lr, _) in zip(_to_floats(waiting), waiting, strict=True):
            if self.diverged_at is not None:
                return
            if not math.isfinite(loss) or loss > self.loss_limit:
                self.diverged_at = len(self.losses)
            for name in metrics.keys() - self.metrics.keys():
                self.metrics[name] = [math.nan] * len(self.losses)
            for name, series in self.metrics.items():
                series.append(metrics.get(name, math.nan))
            self.losses.append(loss)
            self.lrs.append(lr)

    def last_metrics(self) -> dict[str, float]:
        """The further numbers of the last fetched step."""
        return {name: series[-1] for name, series in self.metrics.items()}

    def history(
        self, *, planned: int, seconds: float, seed: int, batch_size: int | None, settings: Mapping[str, str]
    ) -> History:
        """The record as a result."""
        return History(
            losses=tuple(self.losses),
            lrs=tuple(self.lrs),
            metrics={name: tuple(series) for name, series in self.metrics.items()},
            evaluations=tuple(self.evaluations),
            planned=planned,
            diverged=self.diverged_at is not None,
            diverged_at=self.diverged_at,
            seconds=seconds,
            seed=seed,
            batch_size=batch_size,
            settings=dict(settings),
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "lrs": torch.tensor(self.lrs, dtype=torch.float64),
            "metrics": {name: torch.tensor(series, dtype=torch.float64) for name, series in self.metrics.items()},
            "evaluations": [(e.loss, e.accuracy, e.samples, e.step) for e in self.evaluations],
            "diverged_at": self.diverged_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.losses, self.lrs = state["losses"].tolist(), state["lrs"].tolist()
        self.metrics = {name: series.tolist() for name, series in state["metrics"].items()}
        self.evaluations = [Evaluation(*values) for values in state["evaluations"]]
        self.diverged_at = state["diverged_at"]


def _to_floats(waiting: list[tuple[Tensor, float, _Metrics]]) -> list[tuple[float, dict[str, float]]]:
    """Losses and metrics as floats, with one transfer from the device for all of them."""
    if len(waiting) == 1:
        loss, _, metrics = waiting[0]
        return [(loss.item(), {name: float(value) for name, value in metrics.items()})]
    tensors = [loss for loss, _, _ in waiting]
    tensors += [value for _, _, metrics in waiting for value in metrics.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack([t.reshape(()).double() for t in tensors]).tolist() if tensors else [])
    losses = [next(numbers) for _ in waiting]
    return [
        (loss, {k: next(numbers) if isinstance(v, Tensor) else float(v) for k, v in metrics.items()})
        for loss, (_, _, metrics) in zip(losses, waiting, strict=True)
    ]
