"""Where a network can be cut, and from which active share on that pays."""

from __future__ import annotations

import time

import torch
from torch import Tensor, fx, nn

from layerscope.methods.focus.backend import Backend
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.cost import CostTable, clock, measure
from layerscope.methods.focus.engines import Engine, all_engines
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.graph import Cut, Traced, trace
from layerscope.methods.focus.plan import Plan, make_plan, zero_fills
from layerscope.methods.focus.records import CutPoint, EngineTime, ProfileReport
from layerscope.methods.focus.runner import Runner

#: A region shorter than this, or with less of the dense time than this, cannot pay for compacting and densifying.
LEAST_CONVOLUTIONS, LEAST_TIME_SHARE = 3, 0.30


def profile(
    model: nn.Module, example: Tensor, *, backend: str = "auto", source: str = "", measure_cuts: bool = True
) -> ProfileReport:
    """Every cut point of ``model`` with its share of the dense time, and the usable ones' break-even active share.

    Args:
        model: in eval mode.
        example: [N, C, H, W]; times are per image at this batch size.
        backend: see :class:`FocusedModel`.
        source: how the user named the network.
        measure_cuts: whether to time each usable cut at several active shares (some seconds each for a large network).

    Raises:
        FocusError, FocusTypeError: see :func:`layerscope.methods.focus.graph.trace`.
    """
    traced, chosen = trace(model, example), make_backend(backend)
    shares = time_shares(traced, example)
    engines = all_engines(model, example)
    timed = time_engines(engines, example)
    best = min((t.ms for t in timed if t.ms is not None), default=float("nan"))
    points = []
    for cut in traced.cuts:
        plan, note = usable(traced, cut, shares[cut.node], chosen)
        full_ms = break_even = None
        if plan is not None and not note and measure_cuts:
            table = measure(Runner(plan, chosen, zero_fills(plan)), engines[0].run or model, example, repeats=3)
            full_ms, break_even = _full(table), _break_even(table, best)
        points.append(
            CutPoint(
                cut.name,
                cut.channels,
                cut.grid,
                cut.brightness,
                shares[cut.node],
                0 if plan is None else plan.convolutions,
                full_ms,
                break_even,
                note or ("ends at " + plan.unsupported[0] if plan is not None and plan.unsupported else ""),
            )
        )
    return ProfileReport(
        source or type(model).__name__, tuple(example.shape), chosen.name, torch.get_num_threads(), timed, tuple(points)
    )


def usable(traced: Traced, cut: Cut, time_share: float, backend: Backend) -> tuple[Plan | None, str]:
    """The plan at this cut, and why it is not worth using (empty if it is)."""
    try:
        plan = make_plan(traced, cut, stem_on_rows=backend.stem_on_rows)
    except FocusError as error:
        return None, str(error)
    if plan.convolutions < LEAST_CONVOLUTIONS:
        return plan, f"only {plan.convolutions} convolutions after it"
    if time_share < LEAST_TIME_SHARE:
        return plan, f"only {100 * time_share:.0f} % of the time after it"
    return plan, ""


class _Clocked(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.best: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> object:
        start = time.process_time()
        value = super().run_node(n)
        self.best[n] = min(self.best.get(n, float("inf")), time.process_time() - start)
        return value


def time_shares(traced: Traced, example: Tensor, *, repeats: int = 3) -> dict[fx.Node, float]:
    """For each node, the share of dense time that comes after it. In [0, 1]."""
    clocked = _Clocked(traced.module)
    with torch.no_grad():
        for _ in range(repeats):
            clocked.run(example)
    total, after, shares = sum(clocked.best.values()) or 1.0, 0.0, dict[fx.Node, float]()
    for node in reversed(list(traced.module.graph.nodes)):
        shares[node] = after / total
        after += clocked.best.get(node, 0.0)
    return shares


def time_engines(engines: tuple[Engine, ...], x: Tensor, *, repeats: int = 5) -> tuple[EngineTime, ...]:
    """Milliseconds per image of each engine, interleaved, minimum over repeats."""
    now, best = clock(), dict[str, float]()
    for _ in range(repeats):
        for engine in engines:
            if engine.run is not None:
                start = now()
                engine.run(x)
                best[engine.name] = min(best.get(engine.name, float("inf")), now() - start)
    return tuple(
        EngineTime(e.name, 1e3 * best[e.name] / x.shape[0] if e.name in best else None, e.note) for e in engines
    )


def _full(table: CostTable) -> float:
    return table.fixed_ms + sum(level.ms[-1] for level in table.levels)


def _break_even(table: CostTable, dense_ms: float) -> float:
    """Largest active share at the cut (by the measured blocks) that costs no more than ``dense_ms``; 0 if none does."""
    shares = sorted(set(table.levels[0].shares))
    costs = []
    for i, _ in enumerate(shares):
        costs.append(table.fixed_ms + sum(level.ms[min(i, len(level.ms) - 1)] for level in table.levels))
    if costs[-1] <= dense_ms:
        return 1.0
    below = [i for i, c in enumerate(costs) if c <= dense_ms]
    if not below:
        return 0.0
    i = below[-1]
    return shares[i] + (shares[i + 1] - shares[i]) * (dense_ms - costs[i]) / (costs[i + 1] - costs[i])
