"""Random changes of a batch of images, drawn from a generator of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.errors import SpecError, did_you_mean

#: (images [N, C, H, W], generator on the CPU) -> images
Augment = Callable[[Tensor, torch.Generator], Tensor]


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every other image, on average, mirrored left to right."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device, non_blocking=True)
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random window of the old size from the image, framed by an eighth of its width (4 pixels of 32) all round."""
    n, _, height, width = x.shape
    frame = max(1, width // 8)
    framed = F.pad(x, (frame,) * 4, mode="replicate")
    drawn = (torch.randint(2 * frame + 1, (n, 1), generator=generator) for _ in range(2))
    dy, dx = (d.to(x.device, non_blocking=True) for d in drawn)
    rows = dy + torch.arange(height, device=x.device)
    columns = dx + torch.arange(width, device=x.device)
    sample = torch.arange(n, device=x.device).view(-1, 1, 1)
    # advanced indices around a slice come first: [N, H, W, C]
    return framed[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """:func:`crop`, then :func:`flip`."""
    return flip(crop(x, generator), generator)


AUGMENTS: dict[str, Augment] = {"flip": flip, "crop": crop, "flip-crop": flip_crop}


def augmentation(augment: str | Augment | None) -> Augment | None:
    """An augmentation by name, or the function itself.

    Raises:
        SpecError: unknown name.
    """
    if not isinstance(augment, str):
        return augment
    if augment not in AUGMENTS:
        raise SpecError(f"no augmentation {augment!r}: {did_you_mean(augment, AUGMENTS)}")
    return AUGMENTS[augment]
