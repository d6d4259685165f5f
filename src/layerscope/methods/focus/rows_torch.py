"""The operations on rows in plain torch: the reference for the kernels, and the path without a compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from layerscope.methods.focus.backend import RowOp
from layerscope.methods.focus.levels import INACTIVE, PADDING, Level, TableMaker, TorchTables
from layerscope.methods.focus.ops import Conv, Norm, Pool
from layerscope.methods.focus.plan import ACTIVATIONS


class TorchBackend:
    """Plain torch: gather the taps of some hundred rows at a time, one matrix product each.

    Gathering in chunks keeps the copied taps in cache; one gather for everything is up to three times slower.
    """

    name = "torch"
    stem_on_rows = False
    chunk = 1024

    def __init__(self) -> None:
        self.tables: TableMaker = TorchTables()

    def conv(self, kind: Conv, activation: str, fill: Tensor | None) -> RowOp:
        """See :class:`Backend`."""
        act, groups, geometry = ACTIVATIONS[activation], kind.groups, kind.geometry
        outs, ins = kind.weight.shape[0] // groups, kind.weight.shape[1]
        # [groups][O/groups, taps * C/groups], taps outermost like the gathered rows
        matrices = [w.permute(0, 2, 3, 1).reshape(outs, -1).contiguous() for w in kind.weight.chunk(groups)]
        depthwise = kind.weight.reshape(-1, geometry.taps).t().contiguous() if kind.is_depthwise else None

        def rows_of(x: Tensor, level: Level) -> Callable[[slice], Tensor]:
            if geometry.is_pointwise:
                return lambda part: x[part][:, None]
            table, padded = level.table(geometry), _with_absent(x, fill, 0.0)
            return lambda part: padded[table[part].long()]

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            taps = rows_of(x, level)
            for start in range(0, out.shape[0], self.chunk):
                part = slice(start, start + self.chunk)
                seen = taps(part)
                if depthwise is not None:
                    y = (seen * depthwise).sum(1) + kind.bias
                elif groups == 1:
                    y = F.linear(seen.reshape(seen.shape[0], -1), matrices[0], kind.bias)
                else:
                    pieces = torch.split(seen, ins, dim=2)
                    y = torch.cat([p.flatten(1) @ m.t() for p, m in zip(pieces, matrices, strict=True)], 1) + kind.bias
                out[part] = act(y if residual is None else y + residual[part])

        return run

    def pool(self, kind: Pool, fill: Tensor | None) -> RowOp:
        """See :class:`Backend`."""

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            table = level.table(kind.geometry).long()
            padded = _with_absent(x, fill, 0.0 if kind.mean else -torch.inf)
            for start in range(0, out.shape[0], self.chunk):
                index = table[start : start + self.chunk]
                seen = padded[index]
                if kind.mean:
                    counted = kind.geometry.taps if kind.count_padding else (index != PADDING).sum(1, keepdim=True)
                    out[start : start + self.chunk] = seen.sum(1) / counted
                else:
                    out[start : start + self.chunk] = seen.amax(1)

        return run

    def norm(self, kind: Norm) -> RowOp:
        """See :class:`Backend`."""

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            out.copy_(F.layer_norm(x, x.shape[1:], kind.weight, kind.bias, kind.eps))

        return run

    def add(self, activation: str) -> RowOp:
        """See :class:`Backend`."""

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            assert residual is not None
            out.copy_(ACTIVATIONS[activation](x + residual))

        return run

    def mean(self, x: Tensor, level: Level, fill: Tensor | None) -> Tensor:
        """See :class:`Backend`."""
        cells = level.mask.shape[1] * level.mask.shape[2]
        total = torch.stack([part.sum(0) for part in torch.split(x, level.counts.tolist())])
        if fill is not None:
            total = total + (cells - level.counts)[:, None] * fill
        return total / cells

    def relevance(self, x: Tensor, quadratic: Tensor | None, linear: Tensor | None, constant: float) -> Tensor:
        """See :class:`Backend`."""
        total = torch.full((x.shape[0],), constant)
        if quadratic is not None:
            total = total + x.square() @ quadratic
        return total if linear is None else total + x @ linear

    def memory(self, floats: int) -> Tensor:
        """See :class:`Backend`."""
        return torch.empty(floats)


def _with_absent(x: Tensor, fill: Tensor | None, padding: float) -> Tensor:
    """The rows, then the fill, then the padding: so that INACTIVE = -2 and PADDING = -1 index them from the end."""
    assert (INACTIVE, PADDING) == (-2, -1)
    tail = x.new_zeros(2, x.shape[1])
    if fill is not None:
        tail[0] = fill
    tail[1] = padding
    return torch.cat([x, tail])
