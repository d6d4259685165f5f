"""Mode normalization: a learned gate sends every image to a few sets of batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerscope.errors import SpecError
from layerscope.norms.base import ChannelNorm, require_several, wide, without_autocast
from layerscope.norms.mixture_kernel import dense


class ModeNorm(ChannelNorm):
    """y = weight * sum_k g_k (x - mean_k) / sqrt(var_k + eps) + bias with a gate g(image), softmax over K modes.

    The gate is a linear map of the image's channel means; mean_k and var_k are moments of the batch weighted with g_k.
    It is the transform of mixture normalization with posteriors per sample instead of per position, without
    1/sqrt(share), and with gradients through the gate. Cheaper than mixture normalization, since the weighted moments
    follow from each sample's own two moments.

    Args:
        channels: number of channels C.
        k: number of modes K.
        momentum: weight of the newest batch in the running moments; None averages all batches.
        eps: added to the variances.
        seed: of the gate's initial weights, drawn from a generator of their own.

    Raises:
        NormInputError: in training mode, one value per channel.
        SpecError: fewer than one mode.

    Source: Deecke, Murray & Bilen 2019, arXiv 1810.05466.
    """

    running_mean: Tensor
    running_second: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, k: int = 2, momentum: float | None = 0.1, eps: float = 1e-5, seed: int = 0
    ) -> None:
        super().__init__(channels, eps=eps)
        if k < 1:
            raise SpecError(f"mode needs at least one mode, got k={k}")
        self.k, self.momentum = k, momentum
        self.gate = nn.Linear(channels, k)
        with torch.no_grad():
            noise = torch.randn(k, channels, generator=torch.Generator().manual_seed(seed))
            self.gate.weight.copy_(1 / k + 0.01 * noise)
            self.gate.bias.zero_()
        self.register_buffer("running_mean", torch.zeros(k, channels))
        self.register_buffer("running_second", torch.ones(k, channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def reset_running_stats(self) -> None:
        """Forget the running moments: mean 0, second moment 1."""
        self.running_mean.zero_()
        self.running_second.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], tokens [N, S, C] or maps [N, C, *] to the same shape."""
        self.axis(x)
        with without_autocast(x):
            z = dense(wide(x))
            # tokens and vectors as [N, C, S], so that a sample is an image, not a position
            samples = z.transpose(1, 2) if z.ndim == 3 else z.flatten(2) if z.ndim > 3 else z.unsqueeze(2)
            y = self._normalize(samples)
            y = y.transpose(1, 2) if z.ndim == 3 else y.reshape(z.shape)
        return y.to(x.dtype)

    def _normalize(self, x: Tensor) -> Tensor:
        first = x.mean(2)
        tau = torch.softmax(self.gate(first), 1)
        mean, var = self._batch_moments(x, first, tau) if self.training else self._running_moments()
        a = torch.rsqrt(var + self.eps)
        if self.weight is None or self.bias is None:
            return x * (tau @ a).unsqueeze(2) - (tau @ (a * mean)).unsqueeze(2)
        a = a * self.weight
        return torch.addcmul((tau @ (self.bias - a * mean)).unsqueeze(2), x, (tau @ a).unsqueeze(2))

    def _batch_moments(self, x: Tensor, first: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        remedy = "use a larger batch, eval() mode, or a norm without batch statistics such as group"
        require_several(x.numel() // self.channels, f"{self.label} in training mode", "the batch", remedy)
        share = (tau / tau.sum(0)).t()
        centre = first.mean(0).detach()  # keeps the difference of second moment and squared mean exact
        second = (x - centre.unsqueeze(1)).square().mean(2)
        mean = share @ (first - centre)
        var = (share @ second - mean.square()).clamp_min(0)
        mean = mean + centre
        self._track(mean.detach(), (var + mean.square()).detach())
        return mean, var

    def _running_moments(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, (self.running_second - self.running_mean.square()).clamp_min(0)

    @torch.no_grad()
    def _track(self, mean: Tensor, second: Tensor) -> None:
        self.num_batches_tracked += 1
        rate = torch.reciprocal(self.num_batches_tracked.to(mean.dtype))
        if self.momentum is not None:
            rate = torch.full_like(rate, self.momentum)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_second.lerp_(second.to(self.running_second.dtype), rate)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.channels}, k={self.k}, momentum={self.momentum}, eps={self.eps}"
