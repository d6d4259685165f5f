"""What a pass will cost, from tables measured on this machine: time by active share, level by level."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerscope.methods.focus.levels import Geometry, Level
from layerscope.methods.focus.runner import Rows, Runner

#: Active shares at which every level is timed.
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)


def clock() -> Callable[[], float]:
    """Seconds of CPU time where one thread does all the work (other processes do not disturb it), else wall time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


@dataclass(frozen=True)
class LevelCost:
    """Time of all steps that work on one grid, by its active share."""

    grid: tuple[int, int]
    parent: int
    """Index of the level it is made from; -1 for the cut's."""
    geometry: Geometry | None
    """The layer that makes it."""
    shares: tuple[float, ...]
    ms: tuple[float, ...]
    """Per image."""

    def at(self, share: float) -> float:
        """Linear interpolation; the table's ends are 0 and 1."""
        for (s0, s1), (t0, t1) in zip(
            zip(self.shares, self.shares[1:], strict=False), zip(self.ms, self.ms[1:], strict=False), strict=True
        ):
            if share <= s1:
                return t0 + (t1 - t0) * (share - s0) / (s1 - s0) if s1 > s0 else t0
        return self.ms[-1]


@dataclass(frozen=True)
class CostTable:
    """Predicts a pass from its active set."""

    levels: tuple[LevelCost, ...]
    fixed_ms: float
    """Stem, choosing the set, and the dense head, per image."""
    dense_ms: float
    """The dense network in eager PyTorch, per image."""

    def predict(self, level: Level) -> float:
        """Milliseconds per image for this set."""
        seen: list[Level] = []
        total = self.fixed_ms
        for cost in self.levels:
            here = level if cost.geometry is None else seen[cost.parent].through(cost.geometry)
            seen.append(here)
            total += cost.at(here.share)
        return total


def measure(runner: Runner, dense: Callable[[Tensor], object], x: Tensor, *, repeats: int = 4) -> CostTable:
    """Time the plan at every share of ``SHARES`` and the dense network, interleaved; the minimum over repeats counts.

    The sets are one square block per image, the shape that natural sets come closest to.
    """
    images = x.shape[0]
    now = clock()
    with torch.no_grad():
        _, (_, height, width) = runner.maps(runner.stem(x))
        masks = [_block(images, height, width, share) for share in SHARES]
        seen: dict[int, _Timed] = {}
        fixed = dense_time = float("inf")
        for _ in range(repeats):
            start = now()
            dense(x)
            dense_time = min(dense_time, now() - start)
            for i, mask in enumerate(masks):
                timed = seen.setdefault(i, _Timed(now))
                runner.observe = timed
                start = now()
                value = runner.stem(x)
                level = runner.level(mask)
                timed.restart(level)
                runner.tail(value, mask, level)
                total = now() - start
                runner.observe = None
                fixed = min(fixed, total - timed.finish())
    full = seen[len(SHARES) - 1]
    levels = []
    for k, (grid, parent, geometry) in enumerate(full.chain):
        points = [(t.share(k), t.ms(k) / images) for t in seen.values()]
        points = sorted({round(s, 6): m for s, m in points}.items())
        ms = [p[1] for p in points]
        for i in reversed(range(len(ms) - 1)):  # more positions never cost less, and noise only adds
            ms[i] = min(ms[i], ms[i + 1])
        levels.append(LevelCost(grid, parent, geometry, tuple(p[0] for p in points), tuple(ms)))
    return CostTable(tuple(levels), 1e3 * fixed / images, 1e3 * dense_time / images)


def _block(images: int, height: int, width: int, share: float) -> Tensor:
    mask = torch.zeros(images, height, width, dtype=torch.bool)
    rows, columns = round(height * share**0.5), round(width * share**0.5)
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[:, top : top + rows, left : left + columns] = True
    return mask


class _Timed:
    """Collects time per level while a pass runs, and how the levels follow from each other."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.chain: list[tuple[tuple[int, int], int, Geometry | None]] = []
        self._best: list[float] = []
        self._this: list[float] = []
        self._shares: list[float] = []
        self._levels: list[Level] = []
        self._last = 0.0

    def restart(self, base: Level) -> None:
        self._this, self._levels, self.chain, self._shares = [], [], [], []
        self._place(base)
        self._last = self._now()

    def __call__(self, step: object, value: object) -> None:
        spent, self._last = self._now() - self._last, self._now()
        if isinstance(value, Rows):
            self._this[self._place(value.level)] += spent

    def _place(self, level: Level) -> int:
        for i, known in enumerate(self._levels):
            if known is level:
                return i
        parent, geometry = -1, None
        for i, known in enumerate(self._levels):
            for g, out in known.made.items():
                if out is level:
                    parent, geometry = i, g
        self._levels.append(level)
        self.chain.append(((level.mask.shape[1], level.mask.shape[2]), parent, geometry))
        self._this.append(0.0)
        self._shares.append(level.share)
        return len(self._levels) - 1

    def finish(self) -> float:
        self._best = [min(a, b) for a, b in zip(self._best, self._this, strict=True)] if self._best else self._this
        return sum(self._this)

    def share(self, k: int) -> float:
        return self._shares[k]

    def ms(self, k: int) -> float:
        return 1e3 * self._best[k]
