"""The operations on rows, twice: in plain torch (the reference, and the path without a compiler) and compiled.

A backend turns an operation into a callable once (weights packed, constants held) and is then called with rows. Both
follow the same contract:

    y[o] = act(b + residual[o] + sum_t W_t x~[table[o, t]])

where x~ is the row, the fill where the table says INACTIVE and zeros where it says PADDING.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.levels import INACTIVE, PADDING, Level, TableMaker, TorchTables
from layerscope.methods.focus.native import (
    ACTIVATIONS as CODES,
)
from layerscope.methods.focus.native import (
    ConvArgs,
    EltArgs,
    LevelArgs,
    MeanArgs,
    Native,
    NormArgs,
    PoolArgs,
    TableArgs,
    native,
    native_or_none,
)
from layerscope.methods.focus.ops import Conv, Norm, Pool
from layerscope.methods.focus.plan import ACTIVATIONS

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

    def memory(self, floats: int) -> Tensor:
        """An uninitialised float32 vector for values and weights."""


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


class CompiledTables:
    """Row numbers and tables by the compiled library."""

    def __init__(self, library: Native) -> None:
        self.library = library

    def number(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`TableMaker`."""
        images, height, width = mask.shape
        rows = torch.empty(mask.shape, dtype=torch.int32)
        position = torch.empty(mask.numel(), dtype=torch.int32)
        counts = torch.empty(images, dtype=torch.int64)
        n = self.library.level(
            LevelArgs(mask.data_ptr(), images, height, width, rows.data_ptr(), position.data_ptr(), counts.data_ptr())
        )
        return rows, position[:n], counts

    def table(self, level: Level, out: Level, geometry: object) -> Tensor:
        """See :class:`TableMaker`."""
        from layerscope.methods.focus.levels import Geometry

        assert isinstance(geometry, Geometry)
        found = torch.empty(out.n, geometry.taps, dtype=torch.int32)
        g, (_, h, w), (_, out_h, out_w) = geometry, level.mask.shape, out.mask.shape
        self.library.table(
            TableArgs(
                level.map.data_ptr(),
                h,
                w,
                out.position.data_ptr(),
                out.n,
                out_h,
                out_w,
                *g.kernel,
                *g.stride,
                *g.padding,
                *g.dilation,
                found.data_ptr(),
            )
        )
        return found


class Arena:
    """Packed weights side by side in large blocks, in the order in which a pass reads them."""

    block = 1 << 23  # floats: 32 MiB

    def __init__(self, library: Native) -> None:
        self._library = library
        self._rest = torch.empty(0)

    def keep(self, x: Tensor) -> Tensor:
        """A copy of ``x`` in the arena; it lives as long as the returned tensor."""
        floats = -(-x.numel() // 16) * 16
        if floats > self._rest.numel():
            self._rest = self._library.memory(max(self.block, floats))
        mine, self._rest = self._rest[: x.numel()], self._rest[floats:]
        return mine.view(x.shape).copy_(x)


class CompiledBackend:
    """The compiled kernels of one instruction set."""

    stem_on_rows = True

    def __init__(self, library: Native) -> None:
        self.library = library
        self.name = library.isa
        self.tables: TableMaker = CompiledTables(library)
        self.arena = Arena(library)

    def conv(self, kind: Conv, activation: str, fill: Tensor | None) -> RowOp:
        """See :class:`Backend`."""
        if kind.is_depthwise:
            return self._depthwise(kind, activation, fill)
        packed = self.arena.keep(pack(kind.weight, kind.groups, self.library.panel))
        return self._conv(packed, kind, activation, fill, kind.weight.shape[1])

    def _conv(self, packed: Tensor, kind: Conv, activation: str, fill: Tensor | None, c: int) -> RowOp:
        bias, geometry, code = kind.bias.contiguous(), kind.geometry, CODES[activation]
        zero = torch.zeros(c)
        outs, taps = kind.weight.shape[0], geometry.taps
        call, pointwise = self.library.conv, geometry.is_pointwise

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            call(
                ConvArgs(
                    x.data_ptr(),
                    x.shape[1],
                    None if pointwise else level.table(geometry).data_ptr(),
                    out.shape[0],
                    taps,
                    c,
                    packed.data_ptr(),
                    outs // kind.groups,
                    kind.groups,
                    bias.data_ptr(),
                    None if residual is None else residual.data_ptr(),
                    outs,
                    code,
                    out.data_ptr(),
                    outs,
                    None if fill is None else fill.data_ptr(),
                    zero.data_ptr(),
                    None,
                    0,
                    0,
                )
            )

        return run

    def conv_table(self, packed: Tensor, kind: Conv, activation: str, x: Tensor, table: Tensor, out: Tensor) -> None:
        """One ungrouped convolution with a table of the caller's own, in units of the last axis of ``x``."""
        c, outs = kind.weight.shape[1], kind.weight.shape[0]
        zero = torch.zeros(1)  # such a table has no absent entries
        self.library.conv(
            ConvArgs(
                x.data_ptr(),
                x.shape[-1],
                table.data_ptr(),
                out.shape[0],
                table.shape[1],
                c,
                packed.data_ptr(),
                outs,
                1,
                kind.bias.data_ptr(),
                None,
                outs,
                CODES[activation],
                out.data_ptr(),
                outs,
                None,
                zero.data_ptr(),
                None,
                0,
                0,
            )
        )

    def _depthwise(self, kind: Conv, activation: str, fill: Tensor | None) -> RowOp:
        channels, geometry, code = kind.weight.shape[0], kind.geometry, CODES[activation]
        weight = kind.weight.reshape(channels, -1).t().contiguous()
        bias, zero = kind.bias.contiguous(), torch.zeros(channels)
        in_runs = geometry.stride[1] == 1 and geometry.dilation[1] == 1 and geometry.kernel[1] in (3, 5, 7)

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            target = level.through(geometry)
            runs, n_runs = self._runs(target) if in_runs else (None, 0)
            self.library.depthwise(
                ConvArgs(
                    x.data_ptr(),
                    channels,
                    level.table(geometry).data_ptr(),
                    out.shape[0],
                    geometry.taps,
                    channels,
                    weight.data_ptr(),
                    channels,
                    1,
                    bias.data_ptr(),
                    None if residual is None else residual.data_ptr(),
                    channels,
                    code,
                    out.data_ptr(),
                    channels,
                    None if fill is None else fill.data_ptr(),
                    zero.data_ptr(),
                    None if runs is None else runs.data_ptr(),
                    n_runs,
                    geometry.kernel[1],
                )
            )

        return run

    def _runs(self, level: Level) -> tuple[Tensor, int]:
        if "runs" not in level.cache:
            runs = torch.empty(level.n + 1, dtype=torch.int32)
            found = self.library.runs(level.position.data_ptr(), level.n, level.mask.shape[2], runs.data_ptr())
            level.cache["runs"] = (runs, found)
        value = level.cache["runs"]
        assert isinstance(value, tuple)
        return value

    def pool(self, kind: Pool, fill: Tensor | None) -> RowOp:
        """See :class:`Backend`."""

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            self.library.pool(
                PoolArgs(
                    x.data_ptr(),
                    level.table(kind.geometry).data_ptr(),
                    out.shape[0],
                    kind.geometry.taps,
                    x.shape[1],
                    int(kind.mean),
                    int(kind.count_padding),
                    out.data_ptr(),
                    None if fill is None else fill.data_ptr(),
                )
            )

        return run

    def norm(self, kind: Norm) -> RowOp:
        """See :class:`Backend`."""
        weight = None if kind.weight is None else kind.weight.contiguous()
        bias = None if kind.bias is None else kind.bias.contiguous()

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            self.library.layer_norm(
                NormArgs(
                    x.data_ptr(),
                    x.shape[0],
                    x.shape[1],
                    None if weight is None else weight.data_ptr(),
                    None if bias is None else bias.data_ptr(),
                    kind.eps,
                    out.data_ptr(),
                )
            )

        return run

    def add(self, activation: str) -> RowOp:
        """See :class:`Backend`."""

        def run(x: Tensor, level: Level, residual: Tensor | None, out: Tensor) -> None:
            assert residual is not None
            n, c = x.shape
            self.library.elementwise(
                EltArgs(x.data_ptr(), residual.data_ptr(), None, n, c, CODES[activation], out.data_ptr())
            )

        return run

    def mean(self, x: Tensor, level: Level, fill: Tensor | None) -> Tensor:
        """See :class:`Backend`."""
        images, height, width = level.mask.shape
        out = torch.empty(images, x.shape[1])
        self.library.mean(
            MeanArgs(
                x.data_ptr(),
                level.counts.data_ptr(),
                images,
                x.shape[1],
                height * width,
                None if fill is None else fill.data_ptr(),
                out.data_ptr(),
            )
        )
        return out

    def memory(self, floats: int) -> Tensor:
        """See :class:`Backend`."""
        return self.library.memory(floats)


def pack(weight: Tensor, groups: int, panel: int) -> Tensor:
    """Weights [O, C/groups, kh, kw] as the kernel reads them: [groups][panels][taps][C/groups][panel], zero-padded."""
    outs, ins, kh, kw = weight.shape
    per_group = outs // groups
    panels = -(-per_group // panel)
    padded = weight.new_zeros(groups, panels * panel, ins, kh * kw)
    padded[:, :per_group] = weight.reshape(groups, per_group, ins, kh * kw)
    return padded.reshape(groups, panels, panel, ins, kh * kw).permute(0, 1, 4, 3, 2).contiguous()


BACKENDS = ("auto", "avx512", "avx2", "plain", "torch")


def make_backend(name: str = "auto") -> Backend:
    """The backend of this name; ``auto`` is the best compiled one, or torch after one notice.

    Raises:
        FocusError: unknown name.
        BuildError: a compiled one was named and cannot be had.
    """
    if name not in BACKENDS:
        raise FocusError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "torch":
        return TorchBackend()
    if name == "auto":
        library = native_or_none()
        return TorchBackend() if library is None else CompiledBackend(library)
    return CompiledBackend(native(name))
