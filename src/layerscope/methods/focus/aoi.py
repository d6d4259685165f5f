"""Area of interest: the positions that may matter, one boolean map per image, at one resolution.

The idea of one mask that every later layer inherits is from Tung et al., "Irrelevant Pixels are Everywhere" (AICAS
2022, arXiv 2207.10741) and "An automated approach for improving the inference latency and energy efficiency of
pretrained CNNs by removing irrelevant pixels with focused convolutions" (ASP-DAC 2024, arXiv 2310.07782).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from layerscope.methods.focus.errors import FocusError, FocusTypeError


@dataclass(frozen=True, eq=False)
class AoI:
    """Boolean maps [N, H, W]; True means: compute this position.

    >>> AoI.from_box((1, 1, 3, 3), (4, 4)).share
    0.25
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor):
            raise FocusTypeError(f"aoi: expected a bool tensor [N, H, W], got {type(self.mask).__name__}")
        if self.mask.dtype != torch.bool:
            raise FocusTypeError(
                f"aoi: expected dtype bool, got {self.mask.dtype}; compare with a threshold first, for example mask > 0"
            )
        if self.mask.ndim != 3 or 0 in self.mask.shape[1:]:
            raise FocusError(f"aoi: expected shape [N, H, W], got {tuple(self.mask.shape)}")

    @classmethod
    def from_mask(cls, mask: Tensor | Sequence[Tensor]) -> AoI:
        """From a bool tensor [N, H, W] or [H, W], or one [H, W] per image.

        Raises:
            FocusTypeError: not bool.
            FocusError: another number of axes, or maps of different sizes.
        """
        if isinstance(mask, Tensor):
            return cls(mask[None] if mask.ndim == 2 else mask)
        maps = list(mask)
        if not maps or any(not isinstance(m, Tensor) or m.shape != maps[0].shape for m in maps):
            raise FocusError("aoi: expected one [H, W] map per image, all of one size")
        return cls(torch.stack(maps))

    @classmethod
    def from_box(cls, box: Sequence[int] | Sequence[Sequence[int]], size: tuple[int, int]) -> AoI:
        """From boxes (top, left, bottom, right), end exclusive; one box, or one per image.

        Raises:
            FocusError: a box that is empty or leaves the grid.
        """
        height, width = size
        listed = torch.as_tensor(box)
        if listed.ndim == 1:
            listed = listed[None]
        if listed.ndim != 2 or listed.shape[1] != 4 or listed.is_floating_point():
            raise FocusError(f"box: expected (top, left, bottom, right) as integers, got {box!r}")
        mask = torch.zeros(len(listed), height, width, dtype=torch.bool)
        for image, (top, left, bottom, right) in enumerate(listed.tolist()):
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise FocusError(
                    f"box: ({top}, {left}, {bottom}, {right}) is empty or leaves the grid {height} x {width}"
                )
            mask[image, top:bottom, left:right] = True
        return cls(mask)

    @classmethod
    def from_brightness(cls, features: Tensor, threshold: float, *, grid: int = 1, shape: str = "cells") -> AoI:
        """Positions whose feature sum over channels, averaged over ``grid`` x ``grid`` cells, reaches ``threshold``.

        Args:
            features: [N, C, H, W], after a non-negative activation.
            threshold: in units of the sum over channels. -inf keeps everything.
            grid: side of a cell in positions.
            shape: ``cells``, or ``rect`` for the bounding box of the cells.

        Raises:
            FocusError: NaN in the features or the threshold, where a comparison would silently drop positions.

        Source: arXiv 2310.07782; the cells are ours.
        """
        if features.ndim != 4:
            raise FocusError(f"features: expected [N, C, H, W], got {tuple(features.shape)}")
        return cls(select(features.sum(1), threshold, grid=grid, shape=shape))

    @property
    def share(self) -> float:
        """Active share over all images, in [0, 1]."""
        return float(self.mask.float().mean())

    def dilate(self, radius: int) -> AoI:
        """Grown by ``radius`` positions in each direction (a square neighbourhood)."""
        return AoI(dilate(self.mask, radius))

    def resize(self, height: int, width: int) -> AoI:
        """The same area on a coarser or equal grid: a cell is active where any position in it is."""
        if self.mask.shape[1:] == (height, width):
            return self
        if self.mask.shape[1] < height or self.mask.shape[2] < width:
            raise FocusError(
                f"aoi: a map of {tuple(self.mask.shape[1:])} is coarser than the cut's grid ({height}, {width}); "
                "give it at the cut's grid or at the input's"
            )
        return AoI(F.adaptive_max_pool2d(self.mask[:, None].float(), (height, width))[:, 0] > 0)


def select(relevance: Tensor, threshold: float, *, grid: int = 1, shape: str = "cells", halo: int = 0) -> Tensor:
    """Bool [N, H, W]: where the cell mean of ``relevance`` [N, H, W] is at least ``threshold``.

    Cells at the lower and right border may be smaller; their mean is over the positions they have.

    Raises:
        FocusError: NaN relevance or threshold, unknown shape, or a grid below 1.
    """
    if threshold != threshold:
        raise FocusError("threshold: NaN; every comparison with it is false, which would drop every position")
    if bool(relevance.isnan().any()):
        raise FocusError("the relevance map holds NaN: the features at the cut are not finite; check input and weights")
    if shape not in ("cells", "rect"):
        raise FocusError(f"shape: expected 'cells' or 'rect', got {shape!r}")
    height, width = relevance.shape[1:]
    mask = pool_cells(relevance, grid) >= threshold
    if grid > 1:
        mask = mask.repeat_interleave(grid, 1).repeat_interleave(grid, 2)[:, :height, :width]
    if shape == "rect":
        mask = bounding_box(mask)
    return dilate(mask, halo)


def pool_cells(relevance: Tensor, grid: int) -> Tensor:
    """Cell means of [N, H, W] over ``grid`` x ``grid`` cells, [N, ceil(H/grid), ceil(W/grid)]."""
    if grid < 1:
        raise FocusError(f"grid: expected a cell side of at least 1, got {grid}")
    if grid == 1:
        return relevance
    return F.avg_pool2d(relevance[:, None], grid, ceil_mode=True, count_include_pad=False)[:, 0]


def bounding_box(mask: Tensor) -> Tensor:
    """The smallest box around the True positions of each image; empty stays empty."""
    rows, columns = mask.any(2), mask.any(1)

    def span(line: Tensor) -> Tensor:
        forward = line.int().cummax(1).values
        backward = line.int().flip(1).cummax(1).values.flip(1)
        return (forward * backward).bool()

    return span(rows)[:, :, None] & span(columns)[:, None, :]


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow [N, H, W] by ``radius`` in each direction."""
    if radius < 0:
        raise FocusError(f"halo: expected a radius of at least 0, got {radius}")
    if radius == 0:
        return mask
    return F.max_pool2d(mask[:, None].float(), 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0
