"""Mixture normalization: batch normalization with a Gaussian mixture in place of the single Gaussian.

Kalayeh & Shah, "Training Faster by Separating Modes of Variation in Batch-normalized Models", arXiv 1806.02892.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.errors import SpecError
from layerscope.norms import mixture_fused as fused
from layerscope.norms.base import require_several, wide, without_autocast
from layerscope.norms.mixture_kernel import (
    CENTRE_SAMPLES,
    EM_SAMPLES,
    MixtureTransform,
    Reduce,
    dense,
    evaluate,
    near_mean,
    posterior_moments,
    posterior_table,
    rows,
    some_positions,
    unrows,
)
from layerscope.norms.mixture_math import (
    Mixture,
    amplitude,
    floored,
    moments,
    posteriors,
    transform,
)
from layerscope.norms.mixture_state import MixtureState, detached, is_distributed, recomputing, to_dtype

Scale = Literal["fisher", "unit"]


class MixtureNorm(MixtureState):
    """y = weight * sum_k tau_k / sqrt(share_k) * (x - mean_k) / sqrt(var_k + eps) + bias.

    Every position is a sample in R^C with posteriors tau over the K components of a Gaussian mixture; mean_k and var_k
    are the tau-weighted moments of the batch, share_k its part of the mass. With one component it is batch
    normalization. The output has mean zero for any tau and, with separated components, standard deviation sqrt(K).

    How the mixture is kept: the first training batch seeds it (k-means++, Lloyd, EM on at most 4096 positions); after
    that every batch is one step of stepwise EM, in which every component moves in proportion to the mass that it got.
    The posteriors that normalize are tempered, those of the EM step never are: tempered EM would merge the components
    within tens of steps. Evaluation takes the posteriors of the same mixture and the running moments. Gradients go
    through the moments, not through the posteriors.

    On a CPU in float32 the passes over the batch are compiled for the number of components when they are first needed,
    in seconds, if there is a C++ compiler; else, or with ``LAYERSCOPE_NATIVE=0``, they are torch operations.

    Second derivatives need ``grad_posterior=True``. On a GPU with Triton, values that are not finite are reported by
    the backward pass (or else the next call), and from a CUDA graph by the next call outside of it.

    The state of a batch norm can be loaded as it is: the layer then computes, in evaluation mode, what that one did.

    Args:
        channels: number of channels C.
        k: number of components K.
        temperature: divides the log posterior. ``channels`` (the number C, the default) keeps posteriors soft; 1 is the
            posterior of the Gaussian mixture itself, which in tens of channels is all but hard.
        scale: ``fisher`` divides by sqrt(share_k), the paper's; ``unit`` by sqrt(K share_k).
        momentum: smallest weight of the newest batch in running moments (the t-th batch has at least 1/t); None freezes
            the mixture and averages all batches since :meth:`reset_running_stats`.
        eps: added to the variances.
        affine: learn a weight and bias per channel.
        grad_posterior: let gradients go through posteriors and shares too (slower, more memory).
        sync: sum the moments over the processes of ``torch.distributed``.
        seed: of the seeding's own random generator.

    Raises:
        NormInputError: in training mode, a single position, or values that are not finite (or above about 1e18).
        SpecError: fewer than one component, or an unknown temperature or scale.
    """

    def __init__(
        self,
        channels: int,
        k: int = 3,
        temperature: str | float = "channels",
        scale: str = "fisher",
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        grad_posterior: bool = False,
        sync: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, k, scale, momentum, eps, affine, sync, seed)
        if scale not in ("fisher", "unit"):
            raise SpecError(f"mixture: scale must be fisher or unit, not {scale!r}")
        self.temperature = _temperature(temperature, channels)
        self.grad_posterior = grad_posterior

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], tokens [N, S, C] or maps [N, C, *] to the same shape."""
        self.axis(x)
        self._settle(x)
        with without_autocast(x):
            if self._takes_kernels(x):
                return self._train_fused(dense(x)) if self.training else self._evaluate_fused(dense(x))
            z = dense(wide(x))
            y = self._train(z) if self.training else self._evaluate(z)
        return y.to(x.dtype)

    def _takes_kernels(self, x: Tensor) -> bool:
        if _is_recorded() or self.grad_posterior or not fused.usable(x, self.k):
            return False
        return self.training or not self._evaluation_needs_autograd(x)

    def _train_fused(self, x: Tensor) -> Tensor:
        """On a GPU nothing waits for the check that all is finite: the backward pass raises, or else the next call."""
        self._require_batch(x)
        again = recomputing()
        track = None
        if not again and self.momentum is not None:
            track = fused.Tracked(self.mixture, self.running, self.num_batches_tracked, self.momentum)
        done = fused.train(
            x, self._mixture_of_this_pass(), self.weight, self.bias, temperature=self.temperature, scale=self.scale,
            eps=self.eps, reduce=self._reduce(), track=track, refuse=self._refuse_infinite,
        )  # fmt: skip
        if self.momentum is None:
            self._require_finite(done.batch.var.sum())
            self._track(done.batch, done.batch)
        elif not again:
            self._before, self._pending = done.before, done.watch
        return done.y

    def _evaluate_fused(self, x: Tensor) -> Tensor:
        alpha = amplitude(self.running_weight.float(), self.scale)
        affine = self._affine(self.running_mean.float())
        return fused.evaluate(x, self.mixture, self.running, alpha, affine, self.temperature, self.eps)

    def _train(self, z: Tensor) -> Tensor:
        self._require_batch(z)
        mixture = to_dtype(self._mixture_of_this_pass(), z)
        if _is_watched(z) or self.grad_posterior:
            return self._train_readable(rows(z), floored(mixture, self.eps), z)
        x, reduce = rows(z), self._reduce()
        with torch.no_grad():
            centre = near_mean(x, CENTRE_SAMPLES, reduce)
            table = posterior_table(mixture, centre, self.eps)
            tau, batch = posterior_moments(x, self.k, table / self.temperature, centre, reduce)
            batch_of_em = batch
            if self.temperature != 1 and self.momentum is not None and not recomputing():
                turn = int(self.num_batches_tracked) if z.device.type == "cpu" else 0
                _, batch_of_em = posterior_moments(some_positions(x, EM_SAMPLES, turn), self.k, table, centre, reduce)
            self._require_finite(batch.var.sum() + batch_of_em.mass.sum())
            self._track(batch, batch_of_em)
            alpha = amplitude(batch.share, self.scale)
        weight, bias = self._affine(z)
        y: Tensor = MixtureTransform.apply(z, weight, bias, tau, batch, alpha, centre, self.eps, reduce)  # type: ignore[no-untyped-call]  # torch's own signature
        return y

    def _train_readable(self, x: Tensor, mixture: Mixture, z: Tensor) -> Tensor:
        """The same by autograd alone: what can be compiled, and what lets gradients through the posteriors."""
        tau = posteriors(x if self.grad_posterior else x.detach(), mixture, self.temperature)
        batch = moments(x, tau)
        batch_of_em = batch if self.temperature == 1 else moments(x.detach(), posteriors(x.detach(), mixture))
        if not _is_recorded():
            self._require_finite(batch.var.detach().sum())
        self._track(detached(batch), detached(batch_of_em))
        alpha = amplitude(batch.share if self.grad_posterior else batch.share.detach(), self.scale)
        return self.scale_and_shift(unrows(transform(x, tau, batch.mean, batch.var, alpha, self.eps), z))

    def _evaluate(self, z: Tensor) -> Tensor:
        mixture, run = to_dtype(self.mixture, z), to_dtype(self.running, z)
        alpha = amplitude(run.weight, self.scale)
        if self._evaluation_needs_autograd(z) or _is_watched(z):
            x, mixture = rows(z), floored(mixture, self.eps)
            tau = posteriors(x if self.grad_posterior else x.detach(), mixture, self.temperature)
            return self.scale_and_shift(unrows(transform(x, tau, run.mean, run.var, alpha, self.eps), z))
        weight, bias = self._affine(z)
        scale = (run.var + self.eps).rsqrt_().mul_(alpha).mul_(weight)
        y = torch.empty_like(z)
        offset = torch.addcmul(bias, run.mean, scale, value=-1)
        evaluate(rows(z), rows(y), mixture, self.temperature, self.eps, scale, offset)
        return y

    def _evaluation_needs_autograd(self, x: Tensor) -> bool:
        trains_affine = self.weight is not None and self.weight.requires_grad
        return torch.is_grad_enabled() and (x.requires_grad or trains_affine)

    def _require_batch(self, z: Tensor) -> None:
        """A batch of several positions, and a mixture: the first one seeds it."""
        remedy = "use a larger batch, eval() mode, or a norm without batch statistics such as group"
        require_several(z.numel() // self.channels, f"{self.label} in training mode", "the batch", remedy)
        if not self._is_seeded:
            self._seed(z)

    def _affine(self, z: Tensor) -> tuple[Tensor, Tensor]:
        weight = z.new_ones(self.channels) if self.weight is None else self.weight.to(z.dtype)
        bias = z.new_zeros(self.channels) if self.bias is None else self.bias.to(z.dtype)
        return weight, bias

    def _reduce(self) -> Reduce:
        return _all_reduce if self.sync and is_distributed() else None

    @classmethod
    def from_batchnorm(cls, bn: nn.Module, k: int = 3, **options: Any) -> Self:
        """A layer that computes, in evaluation mode, what the trained batch norm ``bn`` computes.

        All components get its running moments and the same share, so that the posteriors do not matter; the weight is
        divided by sqrt(K) under ``scale="fisher"``. The mixture itself starts as K copies of the batch norm's Gaussian,
        shifted by a tenth of a standard deviation, from where training separates them.

        Args:
            bn: any of torch's batch norms, with running statistics.
            k: number of components.
            options: as of the class; momentum, eps and affine are those of ``bn`` unless given, as far as they can be.

        Raises:
            SpecError: ``bn`` is no batch norm, or keeps no running statistics; or ``affine=False`` where a weight is
                needed.
        """
        if not isinstance(bn, _BatchNorm) or bn.running_mean is None or bn.running_var is None:
            raise SpecError(f"from_batchnorm needs a batch norm with running statistics, got {type(bn).__name__}")
        needs_weight = k > 1 and options.get("scale", "fisher") == "fisher"  # to divide by sqrt(K)
        momentum = 0.1 if bn.momentum is None else bn.momentum  # None would keep the components together for ever
        options = {"momentum": momentum, "eps": bn.eps, "affine": bn.affine or needs_weight} | options
        made = cls(bn.num_features, k, **options).to(bn.running_mean)
        made.adopt(bn)
        return made.train(bn.training)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return (
            f"{self.channels}, k={self.k}, temperature={self.temperature:g}, scale={self.scale}, "
            f"momentum={self.momentum}, eps={self.eps}"
        )


def _temperature(value: str | float, channels: int) -> float:
    if value == "channels":
        return float(channels)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise SpecError(f"mixture: temperature must be 'channels' or a number greater than 0, not {value!r}")
    return number


def _is_recorded() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace writes down what is done: then plain operations."""
    return torch.compiler.is_compiling() or bool(torch._C._is_tracing())


def _is_watched(x: Tensor) -> bool:
    """Whether every operation has to be torch's own: recorded, transformed by torch.func, or seen by a mode."""
    return (
        _is_recorded()
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


def _all_reduce(x: Tensor) -> None:
    torch.distributed.all_reduce(x)
