"""Small networks and data that the tests of this room share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tiny(seed: int = 0, classes: int = 3, width: int = 16) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
        )  # fmt: skip


def samples(n: int = 24, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % classes


def shapes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """12 x 12 images of bars: a lying one, a standing one, a cross, at random places with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.rand(n, 1, 12, 12, generator=generator)
    y = torch.arange(n) % 3
    rows, columns = (torch.randint(1, 8, (n,), generator=generator).tolist() for _ in range(2))
    for i, (r, c) in enumerate(zip(rows, columns, strict=True)):
        if y[i] != 1:
            x[i, 0, r, 1:10] += 0.5
        if y[i] != 0:
            x[i, 0, 1:10, c] += 0.5
    return x.clamp(0, 1), y


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
