"""Batch normalization on parts of the batch: Ghost BatchNorm. Hoffer et al. 2017, arXiv 1705.08741."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.norms.base import require_several
from layerscope.norms.running import RunningNorm


class GhostBatchNorm(RunningNorm):
    """Batch normalization in which every sample sees only the statistics of its ghost batch.

    A batch of N samples becomes floor(N / size) ghost batches (at least one); sample i belongs to ghost i mod G, so
    that no memory is moved. Running statistics are averages over the ghosts; evaluation mode is plain batch norm.
    A ``size`` of the later training batch makes a probe at a large batch see that batch's noise.

    Args:
        channels: number of channels C.
        size: samples in a ghost batch.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.

    Raises:
        NormInputError: in training mode, one value per channel and ghost batch.
    """

    def __init__(self, channels: int, size: int = 32, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], [N, S, C] or [N, C, *] to the same shape."""
        self.axis(x)
        maps = x.transpose(1, 2) if x.ndim == 3 else x
        y = self._train(maps) if self.training else self._normalize(maps, self.running_mean, self.running_var)
        return (y.transpose(1, 2) if x.ndim == 3 else y).to(x.dtype)

    def _normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def _train(self, x: Tensor) -> Tensor:
        ghosts = max(1, x.shape[0] // self.size)
        smallest = (x.shape[0] // ghosts) * math.prod(x.shape[2:])
        remedy = "use a larger ghost batch or eval() mode"
        require_several(smallest, f"{self.label} in training mode", "one ghost batch", remedy)
        if x.shape[0] % ghosts:
            parts = [self._one(x[g::ghosts]) for g in range(ghosts)]
            self.track(_mean([m for _, m, _ in parts]), _mean([v for _, _, v in parts]))
            return _interleave([y for y, _, _ in parts], x)
        # [N, C, *] as [N / G, G * C, *]: one call of torch's kernel normalizes all ghosts
        folded = x.reshape(x.shape[0] // ghosts, ghosts * self.channels, *x.shape[2:])
        weight, bias = (None if p is None else p.repeat(ghosts) for p in (self.weight, self.bias))
        y, mean, var = _batch_norm(folded, weight, bias, self.eps)
        self.track(mean.view(ghosts, -1).mean(0), var.view(ghosts, -1).mean(0))
        return y.reshape(x.shape)

    def _one(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _batch_norm(x, self.weight, self.bias, self.eps)


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized x, and mean and unbiased variance per channel, from one call of torch's kernel."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = torch.zeros(x.shape[1], dtype=wide, device=x.device)
    var = torch.ones(x.shape[1], dtype=wide, device=x.device)
    y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)
    return y, mean, var


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean(0)


def _interleave(parts: list[Tensor], x: Tensor) -> Tensor:
    """The inverse of ``[x[g::G] for g in range(G)]``."""
    order = torch.cat([torch.arange(g, x.shape[0], len(parts), device=x.device) for g in range(len(parts))])
    return torch.cat(parts).index_select(0, order.argsort())
