"""Real random networks, written without the package: the oracle of the recursions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """Cosine after every layer, and growth per layer, toward the input, of gradient norm x rms of conv outputs."""

    cosines: list[float]
    pooled: list[float]
    rate: float
    gradients: list[float]


def group(size: int) -> Norm:
    return lambda u: F.group_norm(u, u.shape[1] // size)


def batch(u: Tensor) -> Tensor:
    return F.batch_norm(u, None, None, training=True)


def frn(u: Tensor) -> Tensor:
    return u / (u.pow(2).mean((2, 3), keepdim=True) + 1e-6).sqrt()


def variance(u: Tensor) -> Tensor:
    axes = (0, *range(2, u.ndim))
    return u / (u.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()


def identity(u: Tensor) -> Tensor:
    return u


def mean_cosine(x: Tensor) -> float:
    x = F.normalize(x.flatten(1).double(), dim=1)
    n = len(x)
    return float((x.sum(0).square().sum() - n) / (n * (n - 1)))


def conv_net(norm: Norm, *, width: int = 128, side: int = 8, depth: int = 20, n: int = 16, seed: int = 0) -> Measured:
    """He-initialised 3x3 circular conv - norm - ReLU layers on Gaussian input; the loss is a random linear readout."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, side, side, generator=g)
    pre, cosines, pooled = [], [], []
    for _ in range(depth):
        w = torch.randn(width, width, 3, 3, generator=g) * (2.0 / (9 * width)) ** 0.5
        u = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), w)
        u.requires_grad_()
        pre.append(u)
        h = norm(u).relu()
        cosines.append(mean_cosine(h.detach()))
        pooled.append(mean_cosine(h.detach().mean((2, 3))))
    return _finish(h, pre, cosines, pooled, g)


def padded_net(norm: Norm, sides: list[int], *, width: int = 128, n: int = 16, seed: int = 0) -> Measured:
    """The same with zero padding, strided where ``sides`` shrink."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, sides[0], sides[0], generator=g)
    pre, cosines, pooled = [], [], []
    for side in sides:
        w = torch.randn(width, width, 3, 3, generator=g) * (2.0 / (9 * width)) ** 0.5
        u = F.conv2d(h, w, padding=1, stride=h.shape[-1] // side)
        u.requires_grad_()
        pre.append(u)
        h = norm(u).relu()
        cosines.append(mean_cosine(h.detach()))
        pooled.append(mean_cosine(h.detach().mean((2, 3))))
    return _finish(h, pre, cosines, pooled, g)


def mlp(norm: Norm, *, width: int = 256, depth: int = 20, n: int = 64, seed: int = 0) -> Measured:
    """The same without positions."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, generator=g)
    pre, cosines = [], []
    for _ in range(depth):
        w = torch.randn(width, width, generator=g) * (2.0 / width) ** 0.5
        u = h @ w.T
        u.requires_grad_()
        pre.append(u)
        h = norm(u).relu()
        cosines.append(mean_cosine(h.detach()))
    return _finish(h, pre, cosines, cosines, g)


def _finish(h: Tensor, pre: list[Tensor], cosines: list[float], pooled: list[float], g: torch.Generator) -> Measured:
    direction = torch.randn(h.shape, generator=g)
    grads = torch.autograd.grad((h * direction).sum(), pre)
    gradients = [float(d.norm() * u.detach().square().mean().sqrt()) for d, u in zip(grads, pre, strict=True)]
    rate = (gradients[0] / gradients[-1]) ** (1.0 / (len(pre) - 1))
    return Measured(cosines, pooled, rate, gradients)
