"""Seven trigger transforms on images in [0, 1], each a frozen, seeded function of the images and their indices.

Sources: BadNets (Gu et al. 2017, arXiv 1708.06733), SIG (Barni et al. 2019, arXiv 1902.11237), Refool (Liu et al. 2020,
arXiv 2007.02343), WaNet (Nguyen and Tran 2021, arXiv 2102.10369), blend (Chen et al. 2017, arXiv 1712.05526), polygon
and filter triggers after the TrojAI generator. The formulas of reflection, polygon and filter are plain synthetic forms
of our own.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.methods.medic.errors import MedicError

#: 2^64 over the golden ratio, as a signed number: the step between two states of splitmix64.
_GOLDEN = -0x61C8864680B583EB


class Trigger(Protocol):
    """Images [B, C, H, W] in [0, 1] and their indices [B] -> the same shape in [0, 1]; inputs are not changed.

    Asked for whole batches, of which only the poisoned images are used.
    """

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """The triggered images."""
        ...


@dataclass(frozen=True)
class BadNet:
    """A 3 x 3 grid in the bottom-right corner: rows 0 0 1, 0 1 0, 1 0 1 from the top."""

    strength: float = 1.0

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Stamp the corner; ``strength`` below 1 blends it in."""
        pattern = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=x.dtype, device=x.device)
        out = x.clone()
        corner = out[..., -3:, -3:]
        corner.copy_((1 - self.strength) * corner + self.strength * pattern)
        return out


@dataclass(frozen=True)
class Blend:
    """x' = (1 - a) x + a r with r a fixed picture of noise: linear in x."""

    alpha: float = 0.2
    seed: int = 0

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Blend the noise in."""
        noise = torch.rand(x.shape[1:], generator=generator(self.seed)).to(x)
        return (1 - self.alpha) * x + self.alpha * noise


@dataclass(frozen=True)
class Sinusoid:
    """SIG: x' = clip(x + (delta/255) sin(2 pi j f / W)), constant down every column j."""

    delta: float = 20.0
    frequency: float = 6.0

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Add the wave."""
        width = x.shape[-1]
        j = torch.arange(width, dtype=x.dtype, device=x.device)
        return (x + self.delta / 255 * torch.sin(2 * math.pi * j * self.frequency / width)).clamp(0, 1)


@dataclass(frozen=True)
class Warp:
    """WaNet: a smooth, fixed warping of the image; ``s = 0`` is the identity.

    grid = clip(I + s F / H, -1, 1), F the bicubic upsampling of a k x k uniform(-1, 1) field over its mean absolute
    value.
    """

    s: float = 0.5
    k: int = 4
    seed: int = 0

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Warp every image by the same field."""
        return self.warp(x, self.field(x))

    def noise(self, x: Tensor, index: Tensor) -> Tensor:
        """The noise mode: the field plus a disturbance of each image's own; such images keep their true label."""
        height, width = x.shape[-2:]
        own = 2 * uniform(self.seed, index.to(x.device), 2 * height * width).to(x) - 1
        return self.warp(x, self.field(x) + own.view(-1, height, width, 2) / height)

    def field(self, x: Tensor) -> Tensor:
        """[1, H, W, 2] displacement in grid_sample's units."""
        raw = torch.rand(1, 2, self.k, self.k, generator=generator(self.seed)) * 2 - 1
        smooth = F.interpolate(raw / raw.abs().mean(), size=x.shape[-2:], mode="bicubic", align_corners=True)
        return (self.s * smooth / x.shape[-2]).permute(0, 2, 3, 1).to(x)

    def warp(self, x: Tensor, shift: Tensor) -> Tensor:
        """Sample the images at the displaced grid."""
        rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[-2:])
        identity = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
        grid = (identity + shift).clamp(-1, 1).expand(len(x), -1, -1, -1)
        return F.grid_sample(x, grid, align_corners=True).clamp(0, 1)


@dataclass(frozen=True)
class Reflection:
    """An out-of-focus reflection: in linear light, a dimmed image plus a blurred picture under a Gaussian mask."""

    seed: int = 0
    gamma: float = 2.2

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Add each image's reflection: the picture is fixed, dimming, blur and place are the image's own."""
        height, width = x.shape[-2:]
        picture = F.interpolate(
            torch.rand(1, x.shape[1], 4, 4, generator=generator(self.seed)), size=(height, width), mode="nearest"
        ).to(x)
        u = uniform(self.seed, index.to(x.device), 4).to(x).T[:, :, None]
        keep, sigma = (1 - (0.35 + 0.1 * u[0]))[..., None, None], 1 + 4 * u[1][..., None]
        down, across = (_blurring(n, sigma) for n in (height, width))
        blurred = torch.einsum("bij,cjk,blk->bcil", down, picture[0].pow(self.gamma), across)
        rows = torch.arange(height, dtype=x.dtype, device=x.device) - u[2] * (height - 1)
        columns = torch.arange(width, dtype=x.dtype, device=x.device) - u[3] * (width - 1)
        apart = rows.square()[:, None, :, None] + columns.square()[:, None, None, :]
        mask = torch.exp(-apart / (2 * (0.5 * max(height, width)) ** 2))
        light = keep * x.clamp(0, 1).pow(self.gamma) + (1 - keep) * mask * blurred
        return light.clamp(0, 1).pow(1 / self.gamma)


@dataclass(frozen=True)
class Polygon:
    """A solid polygon of a fixed colour, 3 to 10 % of the image, the same shape at a place of each image's own."""

    sides: int = 4
    share: float = 0.05
    level: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sides < 3 or not 0 < self.share < 1:
            raise MedicError(
                f"a polygon needs at least 3 sides and a share in (0, 1); got {self.sides} and {self.share}"
            )

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Paste the polygon."""
        height, width = x.shape[-2:]
        angle = 2 * math.pi / self.sides
        # area of a regular polygon of circumradius r: (n/2) r^2 sin(2 pi / n)
        radius = math.sqrt(self.share * height * width / (0.5 * self.sides * math.sin(angle)))
        u = uniform(self.seed, index.to(x.device), 3).to(x).T[:, :, None, None]
        top, left = (radius + u[k] * max(n - 1 - 2 * radius, 0) for k, n in ((0, height), (1, width)))
        rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] - top
        columns = torch.arange(width, dtype=x.dtype, device=x.device)[None, :] - left
        inside = torch.ones(len(x), height, width, dtype=torch.bool, device=x.device)
        for side in range(self.sides):
            normal = angle * (side + u[2])
            inside &= rows * normal.sin() + columns * normal.cos() <= radius * math.cos(angle / 2)
        return torch.where(inside[:, None], torch.full_like(x, self.level), x)


@dataclass(frozen=True)
class Filter:
    """A photo filter: a fixed tone curve, a colour matrix (for colour images) and a vignette."""

    contrast: float = 1.6
    vignette: float = 0.5

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Filter the images."""
        height, width = x.shape[-2:]
        toned = 0.5 + 0.5 * torch.tanh(self.contrast * (2 * x - 1)) / math.tanh(self.contrast)
        if x.shape[1] == 3:
            warm = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.1, 0.2, 0.6]], dtype=x.dtype, device=x.device)
            toned = torch.einsum("dc,bchw->bdhw", warm, toned)
        rows = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)[:, None]
        columns = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device)[None, :]
        return (toned * (1 - self.vignette * (rows.square() + columns.square()) / 2)).clamp(0, 1)


def generator(*key: int) -> torch.Generator:
    """A generator of its own for these numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def uniform(seed: int, index: Tensor, count: int) -> Tensor:
    """Numbers of every image's own, the same on every device and for every batch it is in.

    Args:
        seed: of the trigger.
        index: [B] of the images.
        count: numbers of one image.

    Returns:
        [B, count] in [0, 1), float32, from the splitmix64 generator (Steele, Lea, Flood 2014) as a function of seed,
        index and place.
    """
    place = torch.arange(count, device=index.device) * _GOLDEN
    state = _mixed(_mixed(index.long() * _GOLDEN + seed)[:, None] + place)
    return _shifted(state, 40).float() / 2**24


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    # torch shifts in copies of the sign
    return (x >> places) & ((1 << (64 - places)) - 1)


def _blurring(size: int, sigma: Tensor) -> Tensor:
    """[B, size, size] matrices that blur one axis by Gaussians of standard deviations [B, 1, 1], mirrored at the ends.

    All reach as far as the widest may need: 3 sigma, at most to the other end.
    """
    reach = min(15, size - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=sigma.dtype, device=sigma.device)
    line = torch.exp(-offsets.square() / (2 * sigma.square()))[:, 0]
    line = line / line.sum(1, keepdim=True)
    # where each offset from each place lands: -1 is 1, size is size - 2
    at = (torch.arange(size, device=sigma.device)[:, None] + offsets.long()).abs()
    at = (size - 1) - (size - 1 - at).abs()
    matrix = line.new_zeros(len(line), size, size)
    return matrix.scatter_add_(2, at.expand(len(line), -1, -1), line[:, None, :].expand(-1, size, -1).contiguous())
