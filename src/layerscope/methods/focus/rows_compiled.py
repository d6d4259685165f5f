"""The operations on rows by the compiled kernels: packing weights, and filling in what one call needs."""

from __future__ import annotations

import torch
from torch import Tensor

from layerscope.methods.focus.backend import RowOp
from layerscope.methods.focus.levels import Geometry, Level, TableMaker
from layerscope.methods.focus.native import (
    ACTIVATIONS,
    ConvArgs,
    EltArgs,
    LevelArgs,
    MeanArgs,
    Native,
    NormArgs,
    PoolArgs,
    RelevanceArgs,
    ShrinkArgs,
    TableArgs,
)
from layerscope.methods.focus.ops import Conv, Norm, Pool


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

    def shrink(self, mask: Tensor, size: tuple[int, int], stride: tuple[int, int], start: tuple[int, int]) -> Tensor:
        """See :class:`TableMaker`."""
        out = torch.empty(mask.shape[0], *size, dtype=torch.bool)
        self.library.shrink(ShrinkArgs(mask.data_ptr(), *mask.shape, *size, *stride, *start, out.data_ptr()))
        return out

    def table(self, level: Level, out: Level, geometry: Geometry) -> Tensor:
        """See :class:`TableMaker`."""
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
        bias, geometry, code = kind.bias.contiguous(), kind.geometry, ACTIVATIONS[activation]
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
                ACTIVATIONS[activation],
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
        channels, geometry, code = kind.weight.shape[0], kind.geometry, ACTIVATIONS[activation]
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
                EltArgs(x.data_ptr(), residual.data_ptr(), None, n, c, ACTIVATIONS[activation], out.data_ptr())
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

    def relevance(self, x: Tensor, quadratic: Tensor | None, linear: Tensor | None, constant: float) -> Tensor:
        """See :class:`Backend`."""
        x = x.contiguous()
        out = torch.empty(x.shape[0])
        self.library.relevance(
            RelevanceArgs(
                x.data_ptr(),
                x.shape[0],
                x.shape[1],
                None if quadratic is None else quadratic.data_ptr(),
                None if linear is None else linear.data_ptr(),
                constant,
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
