"""What every backend offers: the operations on rows, and the one contract they follow.

A backend turns an operation into a callable once (weights packed, constants held) and is then called with rows:

    y[o] = act(b + residual[o] + sum_t W_t x~[table[o, t]])

where x~ is the row, the fill where the table says INACTIVE and zeros where it says PADDING.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from layerscope.methods.focus.levels import Level, TableMaker
from layerscope.methods.focus.ops import Conv, Norm, Pool

#: (x [n, C], its level, residual or None, out [n_out, O]) -> None; writes out
RowOp = Callable[[Tensor, Level, Tensor | None, Tensor], None]


class Backend(Protocol):
    """What runs operations on rows."""

    name: str
    stem_on_rows: bool
    """Whether this backend is fast enough to run the dense stem as well."""
    tables: TableMaker

    def conv(self, kind: Conv, activation: str, fill: Tensor | None) -> RowOp:
        """A convolution; ``fill`` [C] is what inactive positions read, None for zeros."""

    def pool(self, kind: Pool, fill: Tensor | None) -> RowOp:
        """Max or mean pooling."""

    def norm(self, kind: Norm) -> RowOp:
        """LayerNorm over channels."""

    def add(self, activation: str) -> RowOp:
        """X + residual, then the activation."""

    def mean(self, x: Tensor, level: Level, fill: Tensor | None) -> Tensor:
        """Mean over the grid [N, C], with the dense divisor H * W."""

    def relevance(self, x: Tensor, quadratic: Tensor | None, linear: Tensor | None, constant: float) -> Tensor:
        """sum_c (quadratic_c x_c^2 + linear_c x_c) + constant for each row, [n]."""

    def memory(self, floats: int) -> Tensor:
        """An uninitialised float32 vector for values and weights."""
