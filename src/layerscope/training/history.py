"""What a training run leaves behind: frozen plain numbers, one per step. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Evaluation:
    """How a network does on data, without training on it."""

    loss: float
    accuracy: float | None
    """Share of samples whose largest output is their class; None where outputs are no class scores."""
    samples: int
    step: int | None = None
    """Training steps done before; None outside of training."""


@dataclass(frozen=True, repr=False)
class History:
    """One training run, step by step."""

    losses: tuple[float, ...]
    """Training loss of every step, before that step's update."""
    lrs: tuple[float, ...]
    """Learning rate of every step (of the first parameter group)."""
    metrics: Mapping[str, tuple[float, ...]]
    """Further numbers of every step, by name; ``accuracy`` with the usual classification step."""
    evaluations: tuple[Evaluation, ...]
    planned: int
    """Steps asked for."""
    diverged: bool
    diverged_at: int | None
    """Index of the first step whose loss was not finite or above the limit."""
    seconds: float
    """Time spent in training, over all its sessions."""
    seed: int
    batch_size: int | None
    """Samples of one optimizer step; None where the data came in batches of its own."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What the run was made of, as text."""

    def __repr__(self) -> str:
        """The run in one line; the dataclass's own would print every step."""
        parts = [f"{self.steps} of {self.planned} steps"]
        if self.diverged:
            parts.append(f"diverged at step {self.diverged_at}")
        elif self.final_loss is not None:
            parts.append(f"loss {self.losses[0]:.3g} -> {self.final_loss:.3g}")
        if self.mean_accuracy is not None:
            parts.append(f"mean training accuracy {self.mean_accuracy:.3f}")
        if self.evaluations and self.evaluations[-1].accuracy is not None:
            parts.append(f"accuracy when last evaluated {self.evaluations[-1].accuracy:.3f}")
        return f"History({', '.join(parts)}, {self.seconds:.1f} s)"

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    @property
    def finished(self) -> bool:
        """All planned steps were done and the loss stayed finite."""
        return self.steps == self.planned and not self.diverged

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Training accuracy of every step; empty if it was not measured."""
        return self.metrics.get("accuracy", ())

    @property
    def mean_accuracy(self) -> float | None:
        """Mean training accuracy over the planned steps, the speed of training; steps after a divergence count as 0."""
        if not self.accuracies or not self.planned:
            return None
        good = self.accuracies[: self.diverged_at] if self.diverged else self.accuracies
        return sum(good) / (self.planned if self.diverged else len(good))

    @property
    def final_loss(self) -> float | None:
        """Mean loss of the last tenth of the steps (at least one)."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail) if tail else None
