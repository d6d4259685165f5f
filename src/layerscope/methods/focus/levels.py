"""Which positions are active at each resolution, and the index tables that convolutions read through.

A :class:`Level` is one grid with one boolean map per image. Its active positions are numbered in raster order, image
after image; row i of a compact tensor [n_active, C] belongs to position i. Going through a layer of stride s, an
output is active where any position of its s x s cell is; stride 1 leaves the set as it is. Layers of the same
geometry share one level object and one table.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

#: Entries of an index table that are no row. Never merged: padding reads zeros, an inactive position reads the fill.
PADDING, INACTIVE = -1, -2
#: Levels of full sets are shared by all threads that run one model.
_MAKING = threading.Lock()


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, padding and dilation of a convolution or pooling layer, as (vertical, horizontal) pairs."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    extra: tuple[int, int] = (0, 0)
    """Padding at the bottom and right beyond that at the top and left; TensorFlow's 'same' pads one side more."""
    same: bool = False
    """Padded by the size of the input, so that ceil(size / stride) outputs come out; see :meth:`at`."""

    def at(self, height: int, width: int) -> Geometry:
        """This geometry on a grid of this size: what ``same`` pads there becomes ``padding`` and ``extra``."""
        if not self.same:
            return self
        total = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip((height, width), self.stride, self.dilation, self.kernel, strict=True)
        ]
        less, more = (total[0] // 2, total[1] // 2), (total[0] % 2, total[1] % 2)
        return replace(self, padding=less, extra=more, same=False)

    @property
    def taps(self) -> int:
        """Positions that one output reads."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_pointwise(self) -> bool:
        """One tap, no stride, no padding: row i reads row i."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == self.extra == (0, 0)

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Grid after the layer, by torch's own formula (``ceil_mode`` drops a window that starts in the padding)."""
        return self._out(height, 0), self._out(width, 1)

    def _out(self, size: int, axis: int) -> int:
        k, s, p, d = self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
        span = size + 2 * p + self.extra[axis] - d * (k - 1) - 1
        out = (-(-span // s) if self.ceil_mode else span // s) + 1
        if self.ceil_mode and (out - 1) * s >= size + p:
            out -= 1
        return out

    def offset(self, axis: int) -> int:
        """First input position of output 0's cell: 0, or the window's centre if a stride-1 layer changes the grid."""
        if self.stride[axis] > 1:
            return 0
        return self.dilation[axis] * (self.kernel[axis] - 1) // 2 - self.padding[axis]


class TableMaker(Protocol):
    """What builds row numbers and index tables: plain torch here, or the compiled kernels."""

    def number(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [N, H, W] position -> row number or INACTIVE, flat positions [n], rows per image [N]."""

    def shrink(self, mask: Tensor, size: tuple[int, int], stride: tuple[int, int], start: tuple[int, int]) -> Tensor:
        """The set [N, *size] after a strided layer: active where any position of the stride x stride cell is.

        Output (0, 0)'s cell starts at ``start``; a cell that sticks out of the grid repeats the border.
        """

    def table(self, level: Level, out: Level, geometry: Geometry) -> Tensor:
        """Index table [n_out, taps], int32."""


class TorchTables:
    """Row numbers and tables in plain torch; the reference for the compiled ones."""

    def number(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`TableMaker`."""
        flat = mask.reshape(-1)
        rows = torch.full(flat.shape, INACTIVE, dtype=torch.int32)
        position = flat.nonzero().reshape(-1)
        rows[position] = torch.arange(position.numel(), dtype=torch.int32)
        return rows.reshape(mask.shape), position.int(), mask.flatten(1).sum(1)

    def shrink(self, mask: Tensor, size: tuple[int, int], stride: tuple[int, int], start: tuple[int, int]) -> Tensor:
        """See :class:`TableMaker`."""
        rows, columns = (_cells(size[i], stride[i], start[i], mask.shape[i + 1]) for i in (0, 1))
        return mask[:, rows].any(2)[:, :, columns].any(3)

    def table(self, level: Level, out: Level, geometry: Geometry) -> Tensor:
        """See :class:`TableMaker`."""
        (kh, kw), (sh, sw) = geometry.kernel, geometry.stride
        (ph, pw), (dh, dw) = geometry.padding, geometry.dilation
        _, height, width = level.mask.shape
        _, out_h, out_w = out.mask.shape
        position = out.position.long()
        image, cell = position // (out_h * out_w), position % (out_h * out_w)
        y = (cell // out_w)[:, None, None] * sh - ph + torch.arange(kh)[:, None] * dh
        x = (cell % out_w)[:, None, None] * sw - pw + torch.arange(kw) * dw
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        flat = (image[:, None, None] * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
        found = torch.where(inside, level.map.reshape(-1)[flat], torch.tensor(PADDING, dtype=torch.int32))
        return found.reshape(position.numel(), kh * kw).contiguous()


class Level:
    """The active set of one grid, for every image of a batch.

    Args:
        mask: bool [N, H, W], True where active; any memory layout.
        tables: who builds row numbers and index tables.
        family: every level that descends from the same first one; a level adds itself.
    """

    def __init__(self, mask: Tensor, tables: TableMaker | None = None, family: WeakSet[Level] | None = None) -> None:
        self.mask = mask.contiguous()
        self._family: WeakSet[Level] = WeakSet() if family is None else family
        self._family.add(self)
        self.tables: TableMaker = tables or TorchTables()
        self.map, self.position, self.counts = self.tables.number(self.mask)
        self.n = int(self.position.numel())
        self.is_full = self.n == self.mask.numel()
        self._unchanged: set[Geometry] = set()
        self._down: dict[tuple[object, ...], Level] = {}
        self.made: dict[Geometry, Level] = {}
        """Levels made from this one, by the layer that made them."""
        self._table: dict[Geometry, Tensor] = {}
        self.cache: dict[object, object] = {}
        """Whatever a backend derives from this level alone."""

    @property
    def share(self) -> float:
        """Active share of the grid, over the whole batch. In [0, 1]; 1 for an empty batch."""
        return self.n / self.mask.numel() if self.mask.numel() else 1.0

    @property
    def images(self) -> int:
        """Number of images N."""
        return int(self.mask.shape[0])

    def through(self, geometry: Geometry) -> Level:
        """The level after a layer of this geometry; the same object for every layer that leads to the same grid."""
        geometry = geometry.at(*self.mask.shape[1:])
        if geometry in self._unchanged:
            return self
        if (known := self.made.get(geometry)) is not None:
            return known
        with _MAKING:
            known = self.made.get(geometry) or self._make(geometry)
        if known is self:  # not kept as a reference to itself: tables go as soon as nobody holds the first level
            self._unchanged.add(geometry)
        else:
            self.made[geometry] = known
        return known

    def _make(self, geometry: Geometry) -> Level:
        _, height, width = self.mask.shape
        out_h, out_w = geometry.out_size(height, width)
        offsets = (geometry.offset(0), geometry.offset(1))
        if geometry.stride == (1, 1) and offsets == (0, 0) and (out_h, out_w) == (height, width):
            return self
        key = (geometry.stride, offsets, out_h, out_w)
        if key not in self._down:
            mask = self.tables.shrink(self.mask, (out_h, out_w), geometry.stride, offsets)
            self._down[key] = self._known(mask) or Level(mask, self.tables, self._family)
        return self._down[key]

    def _known(self, mask: Tensor) -> Level | None:
        """A level of the same family with this very set: one stride of 4 and two of 2 lead to one level."""
        same = (level for level in self._family if level.mask.shape == mask.shape and torch.equal(level.mask, mask))
        return next(same, None)

    def agrees(self, other: Level) -> bool:
        """Whether row i means the same position in both, so that values may be added row by row."""
        return self is other or (self.is_full and other.is_full and self.mask.shape == other.mask.shape)

    def table(self, geometry: Geometry) -> Tensor:
        """Index table [n_out, taps] of a layer of this geometry: row numbers, PADDING or INACTIVE."""
        geometry = geometry.at(*self.mask.shape[1:])
        if geometry not in self._table:
            self._table[geometry] = self.tables.table(self, self.through(geometry), geometry)
        return self._table[geometry]


def _cells(out: int, stride: int, offset: int, size: int) -> Tensor:
    """Input positions [out, stride] of each output's cell; a cell that sticks out of the grid repeats the border."""
    return (torch.arange(out)[:, None] * stride + offset + torch.arange(stride)).clamp(0, size - 1)


def gather(x: Tensor, level: Level) -> Tensor:
    """Rows [n, C] of a dense map [N, C, H, W]."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])[level.position]


def scatter(rows: Tensor, level: Level, fill: Tensor | None = None) -> Tensor:
    """A dense map [N, C, H, W]: the rows where active, ``fill`` [C] (default zeros) elsewhere."""
    images, height, width = level.mask.shape
    channels = rows.shape[1]
    if level.is_full:
        flat = rows.clone()
    elif fill is None:
        flat = rows.new_zeros(images * height * width, channels)
        flat[level.position] = rows
    else:
        flat = fill.to(rows).repeat(images * height * width, 1)
        flat[level.position] = rows
    return flat.reshape(images, height, width, channels).movedim(-1, 1).contiguous()
