"""Find the configuration that saves the most at an accuracy that holds, or return the dense network and say why.

1. The calibration samples are split into a select and a confirm half, by sample or by group.
2. Every usable cut, relevance map, cell grid, shape and threshold quantile gives a candidate; its cost is predicted
   from time tables measured here. Candidates that another one beats in both cost and relevance kept are dropped.
3. The rest are scored on the select half, with both fills. Accuracy is NOT assumed to fall as more is skipped; it
   need not.
4. What stays within the budget is timed end to end against eager PyTorch and the best dense engine, in pairs.
5. The fastest whose speed-up is certain is confirmed on the other half; else the next; else the answer is dense.

The search is ours; arXiv 2310.07782 leaves threshold and layer to the user.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.methods.focus.aoi import pool_cells, select
from layerscope.methods.focus.backend import Backend
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.cost import CostTable, clock, measure
from layerscope.methods.focus.cuts import time_engines, time_shares, usable
from layerscope.methods.focus.engines import Engine, all_engines
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.fills import mean_fills
from layerscope.methods.focus.graph import Cut, Traced, trace
from layerscope.methods.focus.model import FocusedModel
from layerscope.methods.focus.pictures import pictures
from layerscope.methods.focus.plan import Plan, zero_fills
from layerscope.methods.focus.records import Candidate, EngineTime, FocusConfig, FocusReport
from layerscope.methods.focus.relevance import NAMES, Relevance, evidence_of, make_relevance
from layerscope.methods.focus.runner import Runner
from layerscope.methods.focus.samples import Metric, Samples, logits, read, run, scorer, scores, split
from layerscope.methods.focus.timing import interleaved, speedup

QUANTILES = tuple(round(0.05 * i, 2) for i in range(1, 20))
#: How much faster than the best dense engine a focused model must be, for certain.
LEAST_SPEEDUP = 1.05


@dataclass(frozen=True)
class Effort:
    """How much the search may try."""

    cuts: int = 3
    """Cut points, at most."""
    scored: int = 60
    """Candidates that are scored on the select half, before fills."""
    timed: int = 6
    """Candidates that are timed end to end."""
    timing_images: int = 30
    batch: int = 32
    """Images at a time while scoring."""


def focus(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor,
    *,
    max_accuracy_drop: float = 0.5,
    metric: Metric | str | None = None,
    cut: str = "auto",
    relevance: str | Sequence[str] = "auto",
    threshold: float | str = "auto",
    shape: str = "auto",
    fill: str = "auto",
    grid: int | str = "auto",
    halo: int = 0,
    backend: str = "auto",
    example: Tensor | None = None,
    effort: Effort | None = None,
    source: str = "",
    seed: int = 0,
) -> FocusedModel:
    """A focused copy of ``model`` that is certainly faster and, on held-back samples, not worse than the budget.

    Args:
        model: a pretrained network in eval mode; copied, never changed.
        calibration: batches ``x``, ``(x, labels)`` or ``(x, labels, groups)``, or one tensor; a few hundred images.
        max_accuracy_drop: points (percent) of the metric that may be lost.
        metric: ``accuracy`` (the default with labels), ``agreement`` with the dense top class (the default without),
            or a function (outputs, labels) -> score of each sample in [0, 1].
        cut: a cut point's name (:func:`profile` lists them), or ``auto``.
        relevance: one or more of ``brightness``, ``norm``, ``novelty``, ``evidence``, or ``auto`` for all of them.
        threshold: in the relevance map's units, or ``auto``.
        shape: ``cells``, ``rect`` or ``auto``.
        fill: ``zero``, ``mean`` or ``auto``.
        grid: side of a cell in positions at the cut, or ``auto``: the final grid's cell, a half and a quarter of it.
        halo: positions by which every set is grown.
        backend: see :class:`FocusedModel`.
        example: a batch of the size to optimise for; default one image.
        effort: how much to try.
        source: how the user named the network, for the report.
        seed: decides the split and the bootstrap.

    Returns:
        A :class:`FocusedModel`; its ``.report`` says what was tried and why this was chosen. If nothing qualifies, it
        runs the dense network unchanged: a normal outcome.

    Raises:
        FocusError, FocusTypeError: no Conv2d, no valid cut, training mode, empty or unlabelled calibration, wrong
        arguments.
    """
    if not max_accuracy_drop >= 0:
        raise FocusError(f"max_accuracy_drop: expected points >= 0, got {max_accuracy_drop}")
    samples = read(calibration, metric)
    example = samples.x[:1] if example is None else example
    options = _Options(
        cut, _names(relevance), None if threshold == "auto" else float(threshold),
        _one_of("shape", shape, ("cells", "rect")), _one_of("fill", fill, ("zero", "mean")),
        None if grid == "auto" else int(grid), halo,
    )  # fmt: skip
    return _Search(
        model, samples, metric, max_accuracy_drop, options, make_backend(backend), backend, example, effort or Effort(),
        source or type(model).__name__, seed,
    ).result()  # fmt: skip


@dataclass(frozen=True)
class _Options:
    cut: str
    relevance: tuple[str, ...]
    threshold: float | None
    shapes: tuple[str, ...]
    fills: tuple[str, ...]
    grid: int | None
    halo: int


def _names(relevance: str | Sequence[str]) -> tuple[str, ...]:
    if relevance == "auto":
        return tuple(n for n in NAMES if n != "random")
    names = (relevance,) if isinstance(relevance, str) else tuple(relevance)
    for name in names:
        if name not in NAMES:
            make_relevance(name, 1)  # raises with the near names
    return names


def _one_of(name: str, value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    if value != "auto" and value not in known:
        raise FocusError(f"{name}: expected 'auto' or one of {known}, got {value!r}")
    return known if value == "auto" else (value,)


@dataclass(eq=False)
class _Place:
    """Everything known about one cut."""

    cut: Cut
    plan: Plan
    table: CostTable
    runners: dict[str, Runner]
    relevance: dict[str, Relevance]
    maps: dict[str, Tensor]
    """Relevance of the select half, [N, H, W] each."""


class _Search:
    def __init__(
        self, model: nn.Module, samples: Samples, metric: Metric | str | None, budget: float, options: _Options,
        backend: Backend, backend_name: str, example: Tensor, effort: Effort, source: str, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.budget, self.options, self.backend = model, budget, options, backend
        self.backend_name, self.example, self.effort, self.source, self.seed = (
            backend_name,
            example,
            effort,
            source,
            seed,
        )
        self.started = time.perf_counter()
        self.traced: Traced = trace(model, example)
        self.metric_name, self.metric = scorer(metric, samples)
        self.select, self.confirm = split(samples, seed)
        self.labels, self.dense_scores = {}, {}
        for half in ("select", "confirm"):
            self._score_dense(half)
        self.engines: tuple[Engine, ...] = all_engines(model, example)
        self.engine_times = time_engines(self.engines, example)
        known = [t for t in self.engine_times if t.ms is not None]
        self.best_dense = min(known, key=lambda t: t.ms or 0.0)
        self.notes: list[str] = []

    labels: dict[str, Tensor]
    dense_scores: dict[str, Tensor]

    def _score_dense(self, half: str) -> None:
        samples = self.select if half == "select" else self.confirm
        outputs = run(self.model, samples.batches(self.effort.batch))
        if self.metric_name == "agreement":
            labels = torch.cat([logits(o).argmax(1) for o in outputs])
        else:
            assert samples.y is not None
            labels = samples.y
        self.labels[half] = labels
        self.dense_scores[half] = scores(outputs, labels, self.effort.batch, self.metric)

    # ------------------------------------------------------------------------------------------------------------------

    def result(self) -> FocusedModel:
        places = self._places()
        if not places:
            return self._dense("no usable cut: " + "; ".join(self.notes[:4]), ())
        candidates = [c for place in places for c in self._candidates(place)]
        limit = (self.best_dense.ms or 0.0) / LEAST_SPEEDUP
        cheap = [c for c in candidates if c.predicted_ms <= limit]
        if not cheap:
            least = min((c.predicted_ms for c in candidates), default=float("nan"))
            return self._dense(
                f"every candidate is predicted slower than {self.best_dense.name} "
                f"({self.best_dense.ms:.2f} ms; cheapest candidate {least:.2f} ms)",
                tuple(candidates[:20]),
            )
        by_name = {p.cut.name: p for p in places}
        scored = [self._score(c, by_name[c.config.cut]) for c in self._with_fills(self._pareto(cheap, by_name))]
        good = sorted((c for c in scored if c.outcome == "passed"), key=lambda c: c.predicted_ms)
        if not good:
            scored = self._add_chance(scored, by_name, 3)
            least_drop = min(c.select_drop for c in scored if c.select_drop is not None)
            return self._dense(
                f"every candidate lost more than {self.budget:g} points on the select half (least: {least_drop:.2f})",
                scored,
            )
        return self._decide(good, scored, by_name)

    def _places(self) -> list[_Place]:
        shares = time_shares(self.traced, self.example)
        fit: list[tuple[Cut, Plan]] = []
        wanted = [self.traced.cut(self.options.cut)] if self.options.cut != "auto" else list(self.traced.cuts)
        for cut in wanted:
            plan, why_not = usable(self.traced, cut, shares[cut.node], self.backend)
            if self.options.cut != "auto" and plan is None:
                raise FocusError(f"cut: {cut.name!r} cannot be used: {why_not}")
            if plan is not None and (not why_not or self.options.cut != "auto"):
                fit.append((cut, plan))
            else:
                self.notes.append(f"{cut.name}: {why_not}")
        bright = [f for f in fit if f[0].brightness != "no"]
        if self.options.cut == "auto":
            fit = _spread(bright or [f for f in fit if self._maps_for(f[0])], self.effort.cuts)
        return [self._place(cut, plan) for cut, plan in fit if self._maps_for(cut)]

    def _maps_for(self, cut: Cut) -> tuple[str, ...]:
        """Relevance maps that mean something at this cut: brightness only after a non-negative activation."""
        allowed = tuple(n for n in self.options.relevance if n != "brightness" or cut.brightness != "no")
        if cut.brightness == "nearly" and "brightness" in allowed:
            note = f"{cut.name}: brightness after an activation that dips below zero"
            self.notes += [] if note in self.notes else [note]
        return allowed

    def _place(self, cut: Cut, plan: Plan) -> _Place:
        fills = {"zero": zero_fills(plan)}
        batches = self.select.batches(self.effort.batch)
        if "mean" in self.options.fills:
            fills["mean"] = mean_fills(plan, batches)
        runners = {name: Runner(plan, self.backend, fills[name]) for name in self.options.fills}
        runner = next(iter(runners.values()))
        features = evidence = None
        names = self._maps_for(cut)
        if "evidence" in names:
            seen = [evidence_of(self.traced, cut.node, b) for b in batches]
            features, evidence = torch.cat([f for f, _ in seen]), torch.cat([e for _, e in seen])
        elif "novelty" in names:
            with torch.no_grad():
                features = torch.cat([runner.maps(runner.stem(b.contiguous()))[0].clone() for b in batches])
        maps = {n: make_relevance(n, cut.channels, features, evidence) for n in (*names, "random")}
        found: dict[str, list[Tensor]] = {n: [] for n in maps}
        with torch.no_grad():
            for batch in batches:
                rows, grid = runner.maps(runner.stem(batch.contiguous()))
                for name, relevance in maps.items():
                    found[name].append(relevance(rows, grid, self.backend).clone())
        eager = self.engines[0].run
        assert eager is not None
        table = measure(runner, eager, self.example.contiguous())
        choosing = self._time_choice(runner, next(iter(maps.values())), cut)
        table = replace(table, fixed_ms=table.fixed_ms + choosing)
        return _Place(cut, plan, table, runners, maps, {n: torch.cat(f) for n, f in found.items()})

    def _time_choice(self, runner: Runner, relevance: Relevance, cut: Cut) -> float:
        """Milliseconds per image for the relevance map and the set."""
        now, best = clock(), float("inf")
        side = max(1, cut.grid[0] // 8)
        with torch.no_grad():
            rows, grid = runner.maps(runner.stem(self.example.contiguous()))
            for _ in range(5):
                start = now()
                map_ = relevance(rows, grid, self.backend)
                select(map_, float(map_.median()), grid=side)
                best = min(best, now() - start)
        return 1e3 * best / self.example.shape[0]

    def _candidates(self, place: _Place) -> list[Candidate]:
        """Every map, grid, shape and threshold at this cut, with predicted cost; fills come later, they cost alike."""
        found = []
        few = slice(0, 48)
        for name in self._maps_for(place.cut):
            relevance = place.maps[name]
            for grid in self._grids(place):
                cells = pool_cells(relevance, grid).reshape(-1).double()
                known = self.options.threshold
                thresholds = [known] if known is not None else cells.quantile(torch.tensor(QUANTILES).double()).tolist()
                for shape in self.options.shapes:
                    for threshold in thresholds:
                        mask = select(relevance[few], threshold, grid=grid, shape=shape, halo=self.options.halo)
                        config = FocusConfig(place.cut.name, name, threshold, grid, shape, "zero", self.options.halo)
                        if (predicted := self._predict(place, mask)) is not None:
                            share = float(mask.float().mean())
                            found.append(Candidate(config, predicted, share, "predicted slower"))
        return found

    def _predict(self, place: _Place, mask: Tensor) -> float | None:
        """Milliseconds per image, counting that full and empty sets run densely; None if all of them do."""
        focused = mask.flatten(1).any(1) & ~mask.flatten(1).all(1)
        if not bool(focused.any()):
            return None
        level = place.runners[self.options.fills[0]].level(mask[focused])
        share = float(focused.float().mean())
        return share * place.table.predict(level) + (1 - share) * (place.table.fixed_ms + place.table.dense_ms)

    def _grids(self, place: _Place) -> tuple[int, ...]:
        if self.options.grid is not None:
            return (self.options.grid,)
        coarse = [level.grid for level in place.table.levels]
        stride = max(1, place.cut.grid[0] // min(g[0] for g in coarse))
        return tuple(sorted({stride, max(1, stride // 2), max(1, stride // 4)}))

    def _pareto(self, candidates: list[Candidate], places: dict[str, _Place]) -> list[Candidate]:
        """Per cut and map, those that no other beats in both predicted cost and share of relevance kept."""
        kept: list[Candidate] = []
        groups: dict[tuple[str, str], list[tuple[float, float, Candidate]]] = {}
        for c in candidates:
            relevance = places[c.config.cut].maps[c.config.relevance][:48]
            mass = relevance - relevance.amin()
            mask = select(relevance, c.config.threshold, grid=c.config.grid, shape=c.config.shape, halo=c.config.halo)
            share = float((mass * mask).sum() / mass.sum().clamp_min(1e-12))
            groups.setdefault((c.config.cut, c.config.relevance), []).append((c.predicted_ms, -share, c))
        for group in groups.values():
            group.sort(key=lambda item: item[:2])
            best = float("inf")
            front = []
            for _, lost, c in group:
                if lost < best:
                    best = lost
                    front.append(c)
            kept += _thin(front, max(1, self.effort.scored // len(groups)))
        return kept

    def _with_fills(self, candidates: list[Candidate]) -> list[Candidate]:
        return [replace(c, config=replace(c.config, fill=f)) for c in candidates for f in self.options.fills]

    def _score(self, candidate: Candidate, place: _Place) -> Candidate:
        drop, _ = self._drop(candidate.config, place, "select", place.maps[candidate.config.relevance])
        return replace(candidate, select_drop=drop, outcome="passed" if drop <= self.budget else "over budget")

    def _drop(self, config: FocusConfig, place: _Place, half: str, maps: Tensor | None) -> tuple[float, float]:
        """Points lost against dense on a half, and the standard error of that paired difference."""
        samples = self.select if half == "select" else self.confirm
        runner, size = place.runners[config.fill], self.effort.batch
        differences = []
        with torch.no_grad():
            for i, (x, labels, dense) in enumerate(
                zip(
                    samples.batches(size),
                    torch.split(self.labels[half], size),
                    torch.split(self.dense_scores[half], size),
                    strict=True,
                )
            ):
                value = runner.stem(x.contiguous())
                if maps is None:
                    rows, grid = runner.maps(value)
                    relevance = place.relevance[config.relevance](rows, grid, self.backend)
                else:
                    relevance = maps[i * size : i * size + len(x)]
                mask = select(relevance, config.threshold, grid=config.grid, shape=config.shape, halo=config.halo)
                # an empty or full set runs densely, so nothing changes for that image
                here = (mask.flatten(1).any(1) & ~mask.flatten(1).all(1)).nonzero()[:, 0]
                lost = torch.zeros(len(x), dtype=torch.float64)
                if len(here):
                    output = runner.tail(runner.part(value, here, x), mask[here].contiguous())
                    lost[here] = dense[here] - self.metric(output, labels[here]).reshape(-1).double()
                differences.append(lost)
        lost = 100 * torch.cat(differences)
        error = float(lost.std() / len(lost) ** 0.5) if len(lost) > 1 else float("inf")
        return float(lost.mean()), error

    def _add_chance(self, scored: list[Candidate], places: dict[str, _Place], count: int) -> list[Candidate]:
        """Score random positions for the ``count`` candidates that lost least."""
        order = sorted(range(len(scored)), key=lambda i: scored[i].select_drop or 0.0)
        for i in order[:count]:
            scored[i] = self._chance(scored[i], places[scored[i].config.cut])
        return scored

    def _chance(self, candidate: Candidate, place: _Place) -> Candidate:
        """The same active share, grid and fill, at positions that have nothing to do with the image."""
        config, random = candidate.config, place.maps["random"]
        cells = pool_cells(random[:1], config.grid).reshape(-1).double()
        threshold = float(cells.quantile(1 - min(1.0, candidate.active_share)))
        chance = replace(config, relevance="random", threshold=threshold, shape="cells", halo=0)
        drop, _ = self._drop(chance, place, "select", random)
        return replace(candidate, chance_drop=drop)

    def _decide(self, good: list[Candidate], scored: list[Candidate], places: dict[str, _Place]) -> FocusedModel:
        tried: dict[FocusConfig, Candidate] = {}
        fast: list[Candidate] = []
        for candidate in _thin(good, self.effort.timed):
            timed = self._time(self._chance(candidate, places[candidate.config.cut]))
            tried[timed.config] = timed
            if timed.outcome == "passed":
                fast.append(timed)
        chosen = None
        for candidate in sorted(fast, key=lambda c: -(c.speedup_best or 0.0)):
            drop, error = self._drop(candidate.config, places[candidate.config.cut], "confirm", None)
            bound = drop + 1.64 * error
            ok = bound <= self.budget
            checked = replace(
                candidate, confirm_drop=drop, confirm_bound=bound, outcome="chosen" if ok else "not confirmed"
            )
            tried[checked.config] = checked
            if ok:
                chosen = checked
                break
        everything = tuple(tried.get(c.config, c) for c in scored)
        if chosen is None:
            best = max((c.speedup_low or 0.0 for c in tried.values()), default=0.0)
            why = (
                f"{len(fast)} candidates were faster, none was confirmed within {self.budget:g} points"
                if fast
                else f"no candidate within the budget is certainly {LEAST_SPEEDUP:g} times as fast as "
                f"{self.best_dense.name} (best lower bound {best:.2f})"
            )
            return self._dense(why, everything)
        n = len(self.confirm)
        if chosen.confirm_drop == 0 and chosen.confirm_bound == 0:
            self.notes.append(
                f"no confirm sample changed; with {n} samples that still allows up to {300 / n:.1f} points at 95 % "
                "(rule of three)"
            )
        reason = (
            f"{chosen.speedup_best:.2f} times as fast as {self.best_dense.name} (at least {chosen.speedup_low:.2f}), "
            f"losing {chosen.confirm_drop:.2f} points on held-back samples (at most {chosen.confirm_bound:.2f})"
        )
        report = self._report("focused", reason, everything, chosen, places[chosen.config.cut])
        model = self._focused(chosen.config, report)
        model.report = replace(report, pictures=pictures(model, self.confirm.x[:8]))
        return model

    def _time(self, candidate: Candidate) -> Candidate:
        focused = self._focused(candidate.config, None)
        full = FocusedModel(
            self.model, replace(candidate.config, threshold=float("-inf"), fill="zero", relevance="norm"),
            example=self.example, backend=self.backend_name, route=False,
        )  # fmt: skip
        engines: dict[str, Callable[[Tensor], Any]] = {e.name: e.run for e in self.engines if e.run is not None}
        contestants: dict[str, Callable[[Tensor], Any]] = {
            "focused": focused, "full": full, "eager": engines["eager"], "best": engines[self.best_dense.name],
        }  # fmt: skip
        batch = self.example.shape[0]
        times = interleaved(contestants, self._timing_images(batch))
        median_best, low = speedup(times["best"], times["focused"], seed=self.seed)
        return replace(
            candidate,
            outcome="passed" if low > LEAST_SPEEDUP else "not faster",
            speedup_best=median_best,
            speedup_low=low,
            speedup_eager=speedup(times["eager"], times["focused"], seed=self.seed)[0],
            speedup_full=speedup(times["full"], times["focused"], seed=self.seed)[0],
        )

    def _timing_images(self, batch: int) -> list[Tensor]:
        count = self.effort.timing_images
        wanted = torch.arange(count * batch) % len(self.select)
        return list(torch.split(self.select.x[wanted], batch))

    def _focused(self, config: FocusConfig, report: FocusReport | None) -> FocusedModel:
        return FocusedModel(
            self.model, config, example=self.example, calibration=self.select.batches(self.effort.batch),
            backend=self.backend_name, report=report,
        )  # fmt: skip

    def _dense(self, reason: str, candidates: Sequence[Candidate]) -> FocusedModel:
        report = self._report("dense", reason, tuple(candidates), None, None)
        return FocusedModel(self.model, None, example=self.example, backend=self.backend_name, report=report)

    def _report(
        self,
        decision: Any,
        reason: str,
        candidates: tuple[Candidate, ...],
        chosen: Candidate | None,
        place: _Place | None,
    ) -> FocusReport:
        dense = tuple(100 * float(self.dense_scores[h].mean()) for h in ("select", "confirm"))
        times: tuple[EngineTime, ...] = self.engine_times
        return FocusReport(
            self.source, decision, reason, self.metric_name, self.budget, (len(self.select), len(self.confirm)),
            (dense[0], dense[1]), times, self.backend.name, torch.get_num_threads(), chosen, candidates,
            () if place is None else place.plan.unsupported,
            tuple(self.notes) + (() if place is None else place.plan.notes),
            seed=self.seed, seconds=time.perf_counter() - self.started,
        )  # fmt: skip


def _spread(fit: list[tuple[Cut, Plan]], count: int) -> list[tuple[Cut, Plan]]:
    """The earliest cut of each grid first, then the others, in network order, at most ``count``."""
    grids: set[tuple[int, int]] = set()
    first: list[tuple[Cut, Plan]] = []
    rest: list[tuple[Cut, Plan]] = []
    for item in fit:
        (rest if item[0].grid in grids else first).append(item)
        grids.add(item[0].grid)
    return (first + rest)[:count]


def _thin(items: list[Candidate], count: int) -> list[Candidate]:
    """At most ``count``, evenly spread, both ends kept."""
    if len(items) <= count:
        return items
    if count == 1:
        return items[:1]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
