"""A verdict and a comparison as frozen plain values; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerscope._show import Shown
from layerscope.probe.records import Profile

Label = Literal["healthy", "slow", "very slow", "unstable", "fails", "unknown"]
Level = Literal["good", "caution", "bad", "unknown"]
AxisName = Literal["F", "I", "B", "N"]

#: Best first; ``unknown`` stands apart.
LABELS: tuple[Label, ...] = ("healthy", "slow", "very slow", "unstable", "fails", "unknown")


@dataclass(frozen=True)
class Axis:
    """One of the four axes: F forward growth, I informativeness, B backward growth, N batch noise."""

    name: AxisName
    level: Level
    value: float | None
    """The axis's headline number (its meaning and thresholds: see ``layerscope.verdict.axes``)."""
    spread: float | None
    """Half the range of ``value`` over seeds; None with one seed."""
    text: str
    """One short sentence: what was measured and what it means."""
    where: str | None = None
    """First layer at which the problem shows."""


@dataclass(frozen=True)
class Analytic:
    """What the mean-field theory says of the same configuration, before a weight is drawn."""

    cosine: float | None
    """Predicted cosine between samples at the last layer."""
    rate: float | None
    """Predicted growth of the gradient per layer toward the input."""
    growth: str | None
    """``linear``, ``exponential`` or ``constant``: predicted forward growth."""
    agrees: bool | None
    """Whether prediction and probe agree within the theory's stated error; None where there is nothing to compare."""
    note: str
    """Where they disagree: by how much and the likely cause."""


@dataclass(frozen=True)
class MicroTrain:
    """A few real training steps on a copy of the network."""

    lr: float
    steps: int
    batch_size: int
    losses: tuple[float, ...]
    """Training loss before every step that was done."""
    diverged: bool
    diverged_at: int | None

    @property
    def drop(self) -> float:
        """Share of the first loss that is gone over the last three steps; negative where the loss rose."""
        tail = self.losses[-3:]
        return 1 - sum(tail) / len(tail) / self.losses[0] if self.losses[0] else 0.0


@dataclass(frozen=True)
class Verdict(Shown):
    """What will happen when this network is trained, why, and what to do about it."""

    label: Label
    axes: tuple[Axis, ...]
    reason: str
    """One or two sentences naming the quantity and the first bad layer."""
    remedies: tuple[str, ...] = ()
    where: str | None = None
    analytic: Analytic | None = None
    track_record: str = ""
    """How often verdicts of this kind were right on trainings held out from their making; empty if not measured."""
    micro: tuple[MicroTrain, ...] = ()
    """A few real steps per seed, where they were asked for."""
    score: float | None = None
    """Learned score, 0 (will learn nothing) to 1: orders choices with one label; None where none is published."""

    @classmethod
    def unknown(cls, reason: str) -> Verdict:
        """No verdict can be given, and why; a value, not a guess."""
        return cls("unknown", (), reason)

    def axis(self, name: AxisName) -> Axis | None:
        """The axis of this name, if it was judged."""
        return next((a for a in self.axes if a.name == name), None)


@dataclass(frozen=True)
class Choice:
    """One normalization choice for one network: its profiles over seeds and the verdict on them."""

    norm: str
    verdict: Verdict
    profiles: tuple[Profile, ...] = ()
    notes: tuple[str, ...] = ()
    """What surgery did or refused, group counts that were adapted, warnings."""


@dataclass(frozen=True)
class Comparison(Shown):
    """Several choices side by side, in the order asked for."""

    source: str
    data: str
    batch_size: int
    seeds: tuple[int, ...]
    in_shape: tuple[int, ...]
    choices: tuple[Choice, ...]
    seconds: float
    versions: tuple[tuple[str, str], ...] = ()
    command: str = ""
    """A command line that repeats this comparison, where there is one."""

    def __getitem__(self, norm: str) -> Choice:
        for choice in self.choices:
            if choice.norm == norm:
                return choice
        raise KeyError(norm)

    def ranking(self) -> tuple[Choice, ...]:
        """The choices, best verdict first; within a label by the learned score, or in the order asked for."""
        return tuple(sorted(self.choices, key=lambda c: (LABELS.index(c.verdict.label), -(c.verdict.score or 0.0))))
