"""Images as bytes, and the one way they become network input: pad, resize, channels, scale to [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from layerscope.data.dataset import Dataset
from layerscope.errors import DataError

# ITU-R BT.601 luma: what "grey" means in every image library.
_LUMA = (0.299, 0.587, 0.114)
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Images:
    """A data set as it lies on disk; samples become float tensors only when they are taken."""

    name: str
    pixels: NDArray[np.uint8]
    """[N, C, H, W], 0 (black) .. ``white``."""
    y: NDArray[np.int64]
    classes: int
    white: int = 255
    size: int = 0
    pad: int = 0
    channels: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def asked(self, size: int, pad: int, channels: int, limit: int) -> Images:
        """The same images, to be given out as the spec asks.

        Raises:
            DataError: a number of channels other than 1 or 3, or a frame smaller than the image.
        """
        _, c, h, w = self.pixels.shape
        if channels not in (0, 1, 3) or (channels and c not in (1, 3)):
            raise DataError(
                f"{self.name}: channels={channels} from {c}-channel images; only 1 and 3 are interchangeable"
            )
        if pad and pad < max(h, w):
            raise DataError(
                f"{self.name}: pad={pad} is smaller than the {h} x {w} images; use size={pad} to shrink them"
            )
        stop = limit or len(self)
        return replace(self, pixels=self.pixels[:stop], y=self.y[:stop], size=size, pad=pad, channels=channels)

    def take(self, index: Tensor | None = None) -> Dataset:
        """The samples at ``index`` (all by default) as network input."""
        pixels, y = (self.pixels, self.y) if index is None else (self.pixels[index.numpy()], self.y[index.numpy()])
        # In chunks, so that what lies between bytes and result is small beside the result.
        parts = [self._input(torch.from_numpy(pixels[i : i + _CHUNK].copy())) for i in range(0, len(pixels), _CHUNK)]
        return Dataset(self.name, torch.cat(parts), torch.from_numpy(y.astype(np.int64)), self.classes)

    def _input(self, pixels: Tensor) -> Tensor:
        x = pixels.float().mul_(2 / self.white).sub_(1)
        if self.pad:
            dy, dx = self.pad - x.shape[2], self.pad - x.shape[3]
            x = F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2), value=-1.0)
        if self.size and tuple(x.shape[2:]) != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        if self.channels == 3 and x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)
        elif self.channels == 1 and x.shape[1] == 3:
            x = (x * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return x.contiguous()
