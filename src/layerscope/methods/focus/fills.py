"""The calibrated fill: the mean over samples and positions of every value after the cut, in the dense network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from layerscope.methods.focus.ops import GlobalMean, SizeOf
from layerscope.methods.focus.plan import Plan, zero_fills


def mean_fills(plan: Plan, batches: Iterable[Tensor]) -> dict[fx.Node, Tensor]:
    """Mean [C] of each value that the region holds as rows, over all ``batches`` [N, C, H, W]."""
    wanted = set(zero_fills(plan))
    wanted |= {
        s.node for s in plan.steps if s.inside and s.kind is not None and not isinstance(s.kind, GlobalMean | SizeOf)
    }
    sums: dict[fx.Node, Tensor] = {}
    counts: dict[fx.Node, int] = {}
    watcher = _Means(plan, wanted, sums, counts)
    with torch.no_grad():
        for x in batches:
            watcher.run(x)
    return {node: (total / counts[node]).float() for node, total in sums.items()}


class _Means(fx.Interpreter):
    def __init__(
        self, plan: Plan, wanted: set[fx.Node], sums: dict[fx.Node, Tensor], counts: dict[fx.Node, int]
    ) -> None:
        super().__init__(plan.traced.module)
        self._plan, self._wanted, self._sums, self._counts = plan, wanted, sums, counts

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self._wanted and isinstance(value, Tensor):
            rows = value if self._plan.channels_last.get(n, False) else value.movedim(1, -1)
            flat = rows.reshape(-1, rows.shape[-1]).double()
            self._sums[n] = self._sums.get(n, torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.sum(0)
            self._counts[n] = self._counts.get(n, 0) + flat.shape[0]
        return value
