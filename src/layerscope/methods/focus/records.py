"""What focusing leaves behind: frozen plain values. Imports no torch.

Times are milliseconds per image at the batch size, thread count and machine stated in the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerscope._show import Shown

Outcome = Literal[
    "chosen", "confirmed", "passed", "over budget", "not faster", "not confirmed", "predicted slower", "not tried"
]  # fmt: skip


@dataclass(frozen=True)
class FocusConfig:
    """Everything that turns an image into an active set."""

    cut: str
    """Where the active set is chosen: a name from :func:`profile`."""
    relevance: str = "brightness"
    """``brightness``, ``norm``, ``novelty``, ``evidence`` or ``random``; see ``relevance.py``."""
    threshold: float = float("-inf")
    """Cells whose mean relevance is at least this are computed."""
    grid: int = 1
    """Side of a cell, in positions at the cut."""
    shape: str = "cells"
    """``cells``, or ``rect``: their bounding box."""
    fill: str = "zero"
    """What inactive positions hold: ``zero``, or ``mean``, the calibrated mean of the dense network."""
    halo: int = 0
    """Positions by which the set is grown before anything is computed."""

    def __str__(self) -> str:
        return (
            f"{self.relevance} >= {self.threshold:.4g} after {self.cut}, {self.shape} of {self.grid} x {self.grid}, "
            f"{self.fill} fill" + (f", halo {self.halo}" if self.halo else "")
        )


@dataclass(frozen=True)
class CutPoint:
    """One place where the network can be cut."""

    name: str
    channels: int
    grid: tuple[int, int]
    brightness: str
    """``yes`` after ReLU or ReLU6, ``nearly`` after SiLU, GELU, Hardswish; ``no``: the channel sum means nothing."""
    region_share: float
    """Share of the dense time that lies after the cut. In [0, 1]."""
    convolutions: int
    """Convolutions and channel-wise linear layers that would run on active rows."""
    full_ms: float | None
    """Own time with every position active; None where it was not measured."""
    break_even: float | None
    """Active share below which it is faster than the best dense engine; 0 if never, None if not measured."""
    note: str = ""
    """Why the cut is not used, or what ended its region."""


@dataclass(frozen=True)
class EngineTime:
    """One dense way of running the same network."""

    name: str
    ms: float | None
    note: str = ""
    """Why it could not be measured."""


@dataclass(frozen=True)
class ProfileReport(Shown):
    """Where a network can be cut, what it costs there, and from which active share focusing pays."""

    source: str
    in_shape: tuple[int, ...]
    backend: str
    threads: int
    engines: tuple[EngineTime, ...]
    cuts: tuple[CutPoint, ...]

    @property
    def best_engine(self) -> EngineTime:
        """The fastest dense engine."""
        return min((e for e in self.engines if e.ms is not None), key=lambda e: e.ms or 0.0)


@dataclass(frozen=True)
class Candidate:
    """One configuration that the search looked at, and how far it came."""

    config: FocusConfig
    predicted_ms: float
    active_share: float
    """Mean active share at the cut over the select half."""
    outcome: Outcome
    select_drop: float | None = None
    """Points lost on the select half."""
    select_bound: float | None = None
    """select_drop + 1.64 standard errors (over groups where there are any): what the order of confirming rests on."""
    chance_drop: float | None = None
    """Points lost there when the same number of cells is chosen at random, with the same grid and fill."""
    confirm_drop: float | None = None
    confirm_bound: float | None = None
    """confirm_drop + 1.64 standard errors (over groups where there are any): the one-sided 95 % bound."""
    speedup_best: float | None = None
    """Median of paired time ratios, best dense engine over focused."""
    speedup_low: float | None = None
    """Lower end of its 95 % bootstrap interval."""
    speedup_eager: float | None = None
    speedup_full: float | None = None
    """Over its own run with every position active: the gain of focusing alone."""


@dataclass(frozen=True)
class MapScore:
    """A relevance map against random positions of the same number, with the same grid and fill, on the select half."""

    config: FocusConfig
    active_share: float
    drop: float
    """Points lost by the map's positions."""
    chance_drop: float
    """Points lost by random ones."""
    margin: float
    """Mean over samples of what random positions lose more, in points."""
    uncertainty: float
    """1.64 standard errors of the margin."""

    @property
    def verdict(self) -> str:
        """Whether the map beats chance, at 95 % on one side."""
        if self.margin - self.uncertainty > 0:
            return "beats chance"
        return "worse" if self.margin + self.uncertainty < 0 else "no better"


@dataclass(frozen=True)
class Picture:
    """One image and where it was computed."""

    name: str
    image: str
    """``data:image/png;base64,...``"""
    veil: str
    """A partly transparent one, dark where nothing was computed; stretched over the image."""
    active_share: float
    route: str


@dataclass(frozen=True)
class FocusReport(Shown):
    """What the search did and what it decided."""

    source: str
    decision: Literal["focused", "dense"]
    reason: str
    metric: str
    budget: float
    """Points that may be lost."""
    samples: tuple[int, int]
    """Sizes of the select and confirm halves."""
    dense_score: tuple[float, float]
    """Dense score on both halves, in points; 100 for agreement with itself."""
    engines: tuple[EngineTime, ...]
    backend: str
    threads: int
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    unsupported: tuple[str, ...] = ()
    """Operations that ended the region, with the reason."""
    notes: tuple[str, ...] = ()
    maps: tuple[MapScore, ...] = ()
    """Which relevance maps choose better than at random."""
    pictures: tuple[Picture, ...] = ()
    """Some images of the confirm half under the chosen configuration."""
    seed: int = 0
    seconds: float = 0.0
