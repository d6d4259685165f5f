"""One focused convolution as a layer of its own, dense in and dense out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layerscope.methods.focus.aoi import AoI
from layerscope.methods.focus.backend import Backend
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.errors import FocusError, FocusTypeError
from layerscope.methods.focus.graph import check_input
from layerscope.methods.focus.levels import Level, gather, scatter
from layerscope.methods.focus.ops import Unsupported
from layerscope.methods.focus.read_modules import conv_of


class FocusedConv2d(nn.Module):
    """A Conv2d that computes only active outputs.

    For an active output o:  y[o] = b + sum_t W_t x~[s o - p + t], where x~ is x at active inputs, ``fill_in`` at
    inactive ones and zero outside the grid. Inactive outputs hold ``fill_out``. An output is active where any input
    of its s x s cell is.

    Args:
        conv: the layer; its parameters are shared, not copied.
        fill_in: [C_in], default zeros.
        fill_out: [C_out], default zeros.
        backend: see :func:`layerscope.methods.focus.backends.make_backend`.

    Raises:
        FocusTypeError: not a Conv2d.
        FocusError: a padding mode other than zeros.
    """

    def __init__(
        self, conv: nn.Conv2d, *, fill_in: Tensor | None = None, fill_out: Tensor | None = None, backend: str = "auto"
    ) -> None:
        super().__init__()
        if not isinstance(conv, nn.Conv2d):
            raise FocusTypeError(f"conv: expected nn.Conv2d, got {type(conv).__name__}")
        try:
            conv_of(conv)
        except Unsupported as reason:
            raise FocusError(f"conv: {reason}") from None
        self.conv = conv
        self.register_buffer("fill_in", fill_in)
        self.register_buffer("fill_out", fill_out)
        self._backend: Backend = make_backend(backend)

    fill_in: Tensor | None
    fill_out: Tensor | None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: object) -> FocusedConv2d:
        """The same as the constructor, by the name that layer conversions usually have."""
        return cls(conv, **options)  # type: ignore[arg-type]  # checked by the constructor

    @torch.no_grad()
    def forward(self, x: Tensor, aoi: AoI | Tensor | Sequence[Tensor]) -> Tensor:
        """[N, C_out, H', W'] for x [N, C_in, H, W] and a set on x's grid.

        Raises:
            FocusError: a set of another size than x, or x that is not float32.
        """
        check_input(x)
        if x.dtype != torch.float32:
            raise FocusTypeError(f"x: expected float32, got {x.dtype}")
        area = aoi if isinstance(aoi, AoI) else AoI.from_mask(aoi)
        if area.mask.shape[0] not in (1, x.shape[0]) or area.mask.shape[1:] != x.shape[2:]:
            raise FocusError(f"aoi: expected [{x.shape[0]}, {x.shape[2]}, {x.shape[3]}], got {tuple(area.mask.shape)}")
        level = Level(area.mask.expand(x.shape[0], -1, -1), self._backend.tables)
        kind = conv_of(self.conv)
        target = level.through(kind.geometry)
        rows = torch.empty(target.n, kind.weight.shape[0])
        self._backend.conv(kind, "none", self.fill_in)(gather(x, level).contiguous(), level, None, rows)
        return scatter(rows, target, self.fill_out)
