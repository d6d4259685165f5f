"""One cut of a network as the search sees it, and the configurations that are possible there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerscope.methods.focus.aoi import pool_cells, select
from layerscope.methods.focus.cost import CostTable
from layerscope.methods.focus.graph import Cut
from layerscope.methods.focus.plan import Plan
from layerscope.methods.focus.records import Candidate, FocusConfig
from layerscope.methods.focus.relevance import Relevance
from layerscope.methods.focus.runner import Runner

QUANTILES = tuple(round(0.05 * i, 2) for i in range(1, 20))
#: Images by which costs are predicted.
FEW = slice(0, 48)


@dataclass(frozen=True)
class Options:
    """What the caller fixed, and what is left to try."""

    cut: str
    relevance: tuple[str, ...]
    threshold: float | None
    shapes: tuple[str, ...]
    fills: tuple[str, ...]
    grid: int | None
    halo: int


@dataclass(eq=False)
class Place:
    """Everything known about one cut."""

    cut: Cut
    plan: Plan
    table: CostTable
    runners: dict[str, Runner]
    """One per fill."""
    relevance: dict[str, Relevance]
    maps: dict[str, Tensor]
    """Relevance of the select half, [N, H, W] each; ``random`` is always among them."""

    def grids(self) -> tuple[int, ...]:
        """Cell sides worth trying: the cell of the final grid, a half and a quarter of it, and single positions."""
        coarsest = min(level.grid[0] for level in self.table.levels)
        stride = max(1, self.cut.grid[0] // coarsest)
        return tuple(sorted({stride, max(1, stride // 2), max(1, stride // 4), 1}))

    def predict(self, mask: Tensor) -> float | None:
        """Milliseconds per image, counting that full and empty sets run densely; None if all of them do."""
        focused = mask.flatten(1).any(1) & ~mask.flatten(1).all(1)
        if not bool(focused.any()):
            return None
        level = next(iter(self.runners.values())).level(mask[focused])
        share = float(focused.float().mean())
        return share * self.table.predict(level) + (1 - share) * (self.table.fixed_ms + self.table.dense_ms)

    def mask(self, config: FocusConfig) -> Tensor:
        """The sets of some images of the select half under ``config``."""
        return select(
            self.maps[config.relevance][FEW], config.threshold, grid=config.grid, shape=config.shape, halo=config.halo
        )


def candidates(place: Place, options: Options, names: Sequence[str]) -> list[Candidate]:
    """Every map, grid, shape and threshold at this cut, with predicted cost; fills come later, they cost alike."""
    found = []
    for name in names:
        for grid in place.grids() if options.grid is None else (options.grid,):
            cells = pool_cells(place.maps[name], grid).reshape(-1).double()
            steps = torch.tensor(QUANTILES, dtype=torch.float64)
            known = options.threshold
            for threshold in _quantiles(cells, steps) if known is None else [known]:
                for shape in options.shapes:
                    config = FocusConfig(place.cut.name, name, threshold, grid, shape, "zero", options.halo)
                    mask = place.mask(config)
                    if (predicted := place.predict(mask)) is not None:
                        found.append(Candidate(config, predicted, float(mask.float().mean()), "predicted slower"))
    return found


def _quantiles(x: Tensor, steps: Tensor) -> list[float]:
    """torch.quantile refuses more than 2^24 values; every k-th of them serves as well."""
    return x[:: -(-x.numel() // (1 << 24))].quantile(steps).tolist()


def pareto(found: Sequence[Candidate], places: dict[str, Place], count: int) -> list[Candidate]:
    """Per cut and map, those that no other beats in both predicted cost and relevance kept; ``count`` in all."""
    kept: list[Candidate] = []
    groups: dict[tuple[str, str], list[tuple[float, float, Candidate]]] = {}
    for c in found:
        place = places[c.config.cut]
        relevance = place.maps[c.config.relevance][FEW]
        mass = relevance - relevance.amin()
        share = float((mass * place.mask(c.config)).sum() / mass.sum().clamp_min(1e-12))
        groups.setdefault((c.config.cut, c.config.relevance), []).append((c.predicted_ms, -share, c))
    for group in groups.values():
        group.sort(key=lambda item: item[:2])
        best, front = float("inf"), []
        for _, lost, c in group:
            if lost < best:
                best = lost
                front.append(c)
        kept += thin(front, max(1, count // len(groups)))
    return kept


def with_fills(found: Sequence[Candidate], fills: Sequence[str]) -> list[Candidate]:
    """Each candidate once for each fill."""
    return [replace(c, config=replace(c.config, fill=f)) for c in found for f in fills]


def spread(fit: list[tuple[Cut, Plan]], count: int) -> list[tuple[Cut, Plan]]:
    """The earliest cut of each grid first, then the others, in network order, at most ``count``."""
    grids: set[tuple[int, int]] = set()
    first: list[tuple[Cut, Plan]] = []
    rest: list[tuple[Cut, Plan]] = []
    for item in fit:
        (rest if item[0].grid in grids else first).append(item)
        grids.add(item[0].grid)
    return (first + rest)[:count]


def thin(items: list[Candidate], count: int) -> list[Candidate]:
    """At most ``count``, evenly spread, both ends kept."""
    if len(items) <= count:
        return items
    if count == 1:
        return items[:1]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
