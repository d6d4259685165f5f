"""What a cloning run leaves behind, as plain values. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from layerscope._show import Shown


@dataclass(frozen=True)
class TapReport:
    """One tap: its criteria on the first batch, its loss over the epochs."""

    name: str
    kind: str
    neurons: int
    """D: neurons of one sample."""
    effective_activation: float | None
    """exp(H(p)): how many neurons share the activation criterion's weight; None for a function of the user's."""
    effective_impact: float | None
    """exp(H(q)) of the impact criterion; None where it is not looked at."""
    total_weight: float
    """Mean over samples of the sum of w; in (0, 1] for the built-in criteria."""
    dead_channels: int
    """Channels with no spread on the clean data; they are not compared."""
    losses: tuple[float, ...]
    """This tap's part of the clone loss, mean of every epoch."""


@dataclass(frozen=True)
class Report(Shown):
    """How a clone was made. A low attack success rate is evidence about the triggers tested, no certificate."""

    settings: tuple[tuple[str, str], ...]
    seed: int
    samples: int
    samples_per_class: tuple[int, ...]
    teacher_accuracy: float
    """Of the suspicious network, on the clean data without augmentation."""
    taps: tuple[TapReport, ...]
    effective_clone_weight: float
    """clone_weight x mean over taps of the total weight: what to hold equal when criteria are compared."""
    steps: int
    """Optimizer steps; what brings a backdoor back is clone weight times steps, not epochs."""
    cross_entropies: tuple[float, ...]
    """Of the student on the labels, mean of every epoch."""
    clone_losses: tuple[float, ...]
    """Sum over taps, before the clone weight; mean of every epoch."""
    accuracies: tuple[float, ...]
    """Training accuracy, mean of every epoch."""
    seconds: float
    warnings: tuple[str, ...] = ()
