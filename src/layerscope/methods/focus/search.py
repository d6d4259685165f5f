"""Find the configuration that saves the most at an accuracy that holds, or return the dense network and say why.

1. The calibration samples are split into a select and a confirm half, by sample or by group.
2. Every usable cut, relevance map, cell grid, shape and threshold quantile gives a candidate; its cost is predicted
   from time tables measured here. Candidates that another one beats in both cost and relevance kept are dropped.
3. The rest are scored on the select half, with both fills. Accuracy is NOT assumed to fall as more is skipped; it
   need not.
4. What stays within the budget is timed end to end against eager PyTorch and the best dense engine, in pairs.
5. Those whose speed-up is certain are confirmed on the other half, from the safest to the boldest, until one is not:
   the fastest confirmed wins, else the answer is dense. A fixed order of tests that ends with the first failure keeps
   the chance of an answer beyond the budget at that of one test, 5 %, however many are tried (Maurer, Hothorn and
   Lehmacher 1995); going from the fastest down and taking the first that passes would not.

The search is ours; arXiv 2310.07782 leaves threshold and layer to the user.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.methods.focus.aoi import select
from layerscope.methods.focus.backend import Backend
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.cost import clock, measure
from layerscope.methods.focus.cuts import time_engines, time_shares, usable
from layerscope.methods.focus.engines import Engine, all_engines
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.fills import mean_fills
from layerscope.methods.focus.graph import Cut, Traced, trace
from layerscope.methods.focus.model import Fitted, FocusedModel
from layerscope.methods.focus.pictures import pictures
from layerscope.methods.focus.places import Options, Place, candidates, pareto, spread, thin, with_fills
from layerscope.methods.focus.plan import Plan, zero_fills
from layerscope.methods.focus.records import Candidate, FocusConfig, FocusReport, MapScore
from layerscope.methods.focus.relevance import NAMES, Relevance, fitting_set, make_relevance
from layerscope.methods.focus.runner import Runner
from layerscope.methods.focus.samples import Metric, Samples, read
from layerscope.methods.focus.scoring import Scorer, Z
from layerscope.methods.focus.timing import interleaved, speedup

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
    chance: int = 2
    """Configurations of each relevance map and cut that are compared with random positions."""
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
    options = Options(
        cut, _names(relevance), None if threshold == "auto" else float(threshold),
        _one_of("shape", shape, ("cells", "rect")), _one_of("fill", fill, ("zero", "mean")),
        None if grid == "auto" else int(grid), halo,
    )  # fmt: skip
    return _Search(
        model, samples, metric, max_accuracy_drop, options, make_backend(backend), backend, example, effort or Effort(),
        source or type(model).__name__, seed,
    ).result()  # fmt: skip


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


def _bolder_and_bolder(fast: Sequence[Candidate]) -> list[Candidate]:
    """From the smallest upper bound of the select half on, those that are faster than all safer ones."""
    order: list[Candidate] = []
    for c in sorted(fast, key=lambda c: (c.select_bound or 0.0, -c.active_share)):
        if not order or (c.speedup_best or 0.0) > (order[-1].speedup_best or 0.0):
            order.append(c)
    return order


class _Search:
    def __init__(
        self, model: nn.Module, samples: Samples, metric: Metric | str | None, budget: float, options: Options,
        backend: Backend, backend_name: str, example: Tensor, effort: Effort, source: str, seed: int,
    ) -> None:  # fmt: skip
        self.started = time.perf_counter()
        self.model, self.budget, self.options, self.backend = model, budget, options, backend
        self.backend_name, self.example, self.effort = backend_name, example, effort
        self.source, self.seed = source, seed
        self.traced: Traced = trace(model, example)
        self.scorer = Scorer(model, samples, metric, seed, effort.batch)
        self.select, self.confirm = (self.scorer.halves[h].samples for h in ("select", "confirm"))
        self.engines: tuple[Engine, ...] = all_engines(model, example)
        self.engine_times = time_engines(self.engines, example)
        known = [t for t in self.engine_times if t.ms is not None]
        self.best_dense = min(known, key=lambda t: t.ms or 0.0)
        self.places: dict[str, Place] = {}
        self.notes: list[str] = []
        self.maps: list[MapScore] = []

    def result(self) -> FocusedModel:
        self.places = {place.cut.name: place for place in self._places()}
        if not self.places:
            return self._dense("no usable cut: " + "; ".join(self.notes[:4]), ())
        found = [c for p in self.places.values() for c in candidates(p, self.options, self._maps_for(p.cut))]
        limit = (self.best_dense.ms or 0.0) / LEAST_SPEEDUP
        cheap = [c for c in found if c.predicted_ms <= limit]
        if not cheap:
            least = min((c.predicted_ms for c in found), default=float("nan"))
            return self._dense(
                f"every candidate is predicted slower than {self.best_dense.name} "
                f"({self.best_dense.ms:.2f} ms; cheapest candidate {least:.2f} ms)",
                found,
            )
        front = pareto(cheap, self.places, self.effort.scored)
        scored = [self.scorer.score(c, self._at(c), self.budget) for c in with_fills(front, self.options.fills)]
        self._compare_maps(scored)
        good = sorted((c for c in scored if c.outcome == "passed"), key=lambda c: c.predicted_ms)
        if not good:
            scored = self._chance_of_least(scored, 3)
            least_drop = min(c.select_drop for c in scored if c.select_drop is not None)
            return self._dense(
                f"every candidate lost more than {self.budget:g} points on the select half (least: {least_drop:.2f})",
                scored,
            )
        return self._decide(good, scored)

    def _at(self, candidate: Candidate) -> Place:
        return self.places[candidate.config.cut]

    # the cuts --------------------------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        shares = time_shares(self.traced, self.example)
        fit: list[tuple[Cut, Plan]] = []
        fixed = self.options.cut != "auto"
        for cut in [self.traced.cut(self.options.cut)] if fixed else self.traced.cuts:
            plan, why_not = usable(self.traced, cut, shares[cut.node], self.backend)
            if fixed and plan is None:
                raise FocusError(f"cut: {cut.name!r} cannot be used: {why_not}")
            if plan is not None and (not why_not or fixed):
                fit.append((cut, plan))
            else:
                self.notes.append(f"{cut.name}: {why_not}")
        if not fixed:
            bright = [f for f in fit if f[0].brightness != "no"]
            fit = spread(bright or [f for f in fit if self._maps_for(f[0])], self.effort.cuts)
        return [self._place(cut, plan) for cut, plan in fit if self._maps_for(cut)]

    def _maps_for(self, cut: Cut) -> tuple[str, ...]:
        """Relevance maps that mean something at this cut: brightness only after a non-negative activation."""
        allowed = tuple(n for n in self.options.relevance if n != "brightness" or cut.brightness != "no")
        if cut.brightness == "nearly" and "brightness" in allowed:
            note = f"{cut.name}: brightness after an activation that dips below zero"
            self.notes += [] if note in self.notes else [note]
        return allowed

    def _place(self, cut: Cut, plan: Plan) -> Place:
        fills = {"zero": zero_fills(plan)}
        batches = self.select.batches(self.effort.batch)
        if "mean" in self.options.fills:
            fills["mean"] = mean_fills(plan, batches)
        runners = {name: Runner(plan, self.backend, fills[name]) for name in self.options.fills}
        runner = next(iter(runners.values()))
        features = evidence = None
        names = self._maps_for(cut)
        if {"novelty", "evidence"} & set(names):
            features, evidence = fitting_set(self.traced, cut.node, batches)
        maps = {n: make_relevance(n, cut.channels, features, evidence) for n in (*names, "random")}
        found: dict[str, list[Tensor]] = {n: [] for n in maps}
        for batch in batches:
            rows, grid = runner.maps(runner.stem(batch.contiguous()))
            for name, relevance in maps.items():
                found[name].append(relevance(rows, grid, self.backend).clone())
        eager = self.engines[0].run
        assert eager is not None
        table = measure(runner, eager, self.example.contiguous())
        choosing = self._time_choice(runner, next(iter(maps.values())), cut)
        table = replace(table, fixed_ms=table.fixed_ms + choosing)
        return Place(cut, plan, table, runners, maps, {n: torch.cat(f) for n, f in found.items()})

    def _time_choice(self, runner: Runner, relevance: Relevance, cut: Cut) -> float:
        """Milliseconds per image for the relevance map and the set."""
        now, best = clock(), float("inf")
        side = max(1, cut.grid[0] // 8)
        rows, grid = runner.maps(runner.stem(self.example.contiguous()))
        for _ in range(5):
            start = now()
            map_ = relevance(rows, grid, self.backend)
            select(map_, float(map_.median()), grid=side)
            best = min(best, now() - start)
        return 1e3 * best / self.example.shape[0]

    # chance ----------------------------------------------------------------------------------------------------------

    def _compare_maps(self, scored: Sequence[Candidate]) -> None:
        """Each map at each cut against random positions: at its smallest sets, and further up."""
        groups: dict[tuple[str, str], list[Candidate]] = {}
        for c in scored:
            if c.config.fill == self.options.fills[0]:
                groups.setdefault((c.config.cut, c.config.relevance), []).append(c)
        for group in groups.values():
            group.sort(key=lambda c: c.active_share)
            picked = thin(group[: len(group) // 2 + 1], self.effort.chance)
            self.maps += [self.scorer.against_chance(c, self._at(c)) for c in picked]

    def _chance_of_least(self, scored: list[Candidate], count: int) -> list[Candidate]:
        """Score random positions for the ``count`` candidates that lost least."""
        order = sorted(range(len(scored)), key=lambda i: scored[i].select_drop or 0.0)
        for i in order[:count]:
            scored[i] = self.scorer.with_chance(scored[i], self._at(scored[i]))
        return scored

    # the decision ----------------------------------------------------------------------------------------------------

    def _decide(self, good: list[Candidate], scored: list[Candidate]) -> FocusedModel:
        tried: dict[FocusConfig, Candidate] = {}
        fast: list[Candidate] = []
        for candidate in thin(good, self.effort.timed):
            timed = self._time(self.scorer.with_chance(candidate, self._at(candidate)))
            tried[timed.config] = timed
            if timed.outcome == "passed":
                fast.append(timed)
        chosen = safest = None
        for candidate in _bolder_and_bolder(fast):
            drop, error = self.scorer.drop(candidate.config, self._at(candidate), "confirm", None)
            bound = drop + Z * error
            held = bound <= self.budget
            checked = replace(
                candidate, confirm_drop=drop, confirm_bound=bound, outcome="confirmed" if held else "not confirmed"
            )
            tried[checked.config] = checked
            safest = safest or checked
            if not held:
                break
            chosen = checked
        if chosen is not None:
            chosen = tried[chosen.config] = replace(chosen, outcome="chosen")
        everything = tuple(tried.get(c.config, c) for c in scored)
        if chosen is None:
            best = max((c.speedup_low or 0.0 for c in tried.values()), default=0.0)
            why = (
                f"{len(fast)} candidates were faster, none was confirmed within {self.budget:g} points: on held-back "
                f"samples the safest loses {safest.confirm_drop:.2f} (at most {safest.confirm_bound:.2f})"
                if safest is not None
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
        report = self._report("focused", reason, everything, chosen)
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
        wanted = torch.arange(self.effort.timing_images * batch) % len(self.select)
        times = interleaved(contestants, list(torch.split(self.select.x[wanted], batch)))
        median_best, low = speedup(times["best"], times["focused"], seed=self.seed)
        return replace(
            candidate,
            outcome="passed" if low > LEAST_SPEEDUP else "not faster",
            speedup_best=median_best,
            speedup_low=low,
            speedup_eager=speedup(times["eager"], times["focused"], seed=self.seed)[0],
            speedup_full=speedup(times["full"], times["focused"], seed=self.seed)[0],
        )

    def _focused(self, config: FocusConfig, report: FocusReport | None) -> FocusedModel:
        place = self.places[config.cut]
        fills = {node.name: fill for node, fill in place.runners[config.fill].fills.items()}
        return FocusedModel(
            self.model, config, example=self.example, fitted=Fitted(place.relevance[config.relevance], fills),
            backend=self.backend_name, report=report,
        )  # fmt: skip

    def _dense(self, reason: str, tried: Sequence[Candidate]) -> FocusedModel:
        report = self._report("dense", reason, tuple(tried), None)
        return FocusedModel(self.model, None, example=self.example, backend=self.backend_name, report=report)

    def _report(
        self, decision: Any, reason: str, tried: tuple[Candidate, ...], chosen: Candidate | None
    ) -> FocusReport:
        dense = [100 * float(self.scorer.halves[h].dense.mean()) for h in ("select", "confirm")]
        plan = None if chosen is None else self._at(chosen).plan
        return FocusReport(
            self.source, decision, reason, self.scorer.name, self.budget, (len(self.select), len(self.confirm)),
            (dense[0], dense[1]), self.engine_times, self.backend.name, torch.get_num_threads(), chosen, tried,
            () if plan is None else plan.unsupported, tuple(self.notes) + (() if plan is None else plan.notes),
            maps=tuple(self.maps), seed=self.seed, seconds=time.perf_counter() - self.started,
        )  # fmt: skip
