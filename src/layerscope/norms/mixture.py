"""Mixture normalization: batch normalization with a Gaussian mixture in place of the single Gaussian.

Kalayeh & Shah, "Training Faster by Separating Modes of Variation in Batch-normalized Models", arXiv 1806.02892.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.errors import SpecError
from layerscope.norms import mixture_fused as fused
from layerscope.norms.base import ChannelNorm, NormInputError, require_several, wide, without_autocast
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
    Moments,
    amplitude,
    floored,
    moments,
    posteriors,
    seed_mixture,
    transform,
)

Scale = Literal["fisher", "unit"]

#: Samples that a mixture is seeded from.
SEED_SAMPLES = 4096


class MixtureNorm(ChannelNorm):
    """y = weight * sum_k tau_k / sqrt(share_k) * (x - mean_k) / sqrt(var_k + eps) + bias.

    Every position is a sample in R^C with posteriors tau over the K components of a Gaussian mixture; mean_k and var_k
    are the tau-weighted moments of the batch, share_k its part of the mass. With one component it is batch
    normalization. The output has mean zero for any tau and, with separated components, standard deviation sqrt(K).

    How the mixture is kept: the first training batch seeds it (k-means++, Lloyd, EM on at most 4096 positions); after
    that every batch is one step of stepwise EM, in which every component moves in proportion to the mass that it got.
    The posteriors that normalize are tempered, those of the EM step never are: tempered EM would merge the components
    within tens of steps. Evaluation takes the posteriors of the same mixture and the running moments. Gradients go
    through the moments, not through the posteriors.

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

    mixture_weight: Tensor
    mixture_mean: Tensor
    mixture_var: Tensor
    running_weight: Tensor
    running_mean: Tensor
    running_var: Tensor
    running_count: Tensor
    num_batches_tracked: Tensor
    seeded: Tensor

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
        super().__init__(channels, eps=eps, affine=affine)
        if k < 1:
            raise SpecError(f"mixture needs at least one component, got k={k}")
        if scale not in ("fisher", "unit"):
            raise SpecError(f"mixture: scale must be fisher or unit, not {scale!r}")
        self.k, self.scale, self.momentum = k, scale, momentum
        self.temperature = _temperature(temperature, channels)
        self.grad_posterior, self.sync, self.seed = grad_posterior, sync, seed
        for prefix in ("mixture", "running"):
            self.register_buffer(f"{prefix}_weight", self._shares())
            self.register_buffer(f"{prefix}_mean", torch.zeros(k, channels))
            self.register_buffer(f"{prefix}_var", torch.ones(k, channels))
        self.register_buffer("running_count", torch.zeros_like(self._shares()))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.register_buffer("seeded", torch.tensor(False))
        self._is_seeded = False  # the same, without a look at the device
        self._before: Mixture | None = None
        self._pending: fused.Watch | None = None

    def _shares(self) -> Tensor:
        return torch.full((self.k,), 1 / self.k)

    @property
    def mixture(self) -> Mixture:
        """The mixture that posteriors are computed from, before floors."""
        return Mixture(self.mixture_weight, self.mixture_mean, self.mixture_var)

    @property
    def running(self) -> Mixture:
        """Share, mean and variance of every component, as evaluation mode normalizes with."""
        return Mixture(self.running_weight, self.running_mean, self.running_var)

    def reset_running_stats(self) -> None:
        """Forget the running moments; the mixture that gives the posteriors stays."""
        self.running_weight.copy_(self._shares())
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.running_count.zero_()
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C], tokens [N, S, C] or maps [N, C, *] to the same shape."""
        self.axis(x)
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
        """On a GPU nothing waits for the check that all is finite: the next call raises, and nothing was tracked."""
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()  # into a CUDA graph: then nothing may wait
        if not capturing:
            pending, self._pending = self._pending, None
            if pending is not None and not pending.finite():
                self._refuse_infinite()
        self._require_batch(x)
        again = _recomputing()
        track = None
        if not again and self.momentum is not None:
            track = fused.Tracked(self.mixture, self.running, self.num_batches_tracked, self.momentum)
        done = fused.train(
            x, self._mixture_of_this_pass(), self.weight, self.bias, temperature=self.temperature, scale=self.scale,
            eps=self.eps, reduce=self._reduce(), track=track,
        )  # fmt: skip
        if self.momentum is None:
            self._require_finite(done.batch.var.sum())
            self._track(done.batch, done.batch)
        elif not again:
            self._before = done.before
            if not capturing:
                self._pending = fused.Watch(done.finite)
        return done.y

    def _evaluate_fused(self, x: Tensor) -> Tensor:
        alpha = amplitude(self.running_weight.float(), self.scale)
        affine = self._affine(self.running_mean.float())
        return fused.evaluate(x, self.mixture, self.running, alpha, affine, self.temperature, self.eps)

    def _train(self, z: Tensor) -> Tensor:
        self._require_batch(z)
        mixture = to_dtype(self._mixture_of_this_pass(), z)
        if _is_recorded() or self.grad_posterior:
            return self._train_readable(rows(z), floored(mixture, self.eps), z)
        x, reduce = rows(z), self._reduce()
        with torch.no_grad():
            centre = near_mean(x, CENTRE_SAMPLES, reduce)
            table = posterior_table(mixture, centre, self.eps)
            tau, batch = posterior_moments(x, self.k, table / self.temperature, centre, reduce)
            batch_of_em = batch
            if self.temperature != 1 and self.momentum is not None and not _recomputing():
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
        self._track(_detached(batch), _detached(batch_of_em))
        alpha = amplitude(batch.share if self.grad_posterior else batch.share.detach(), self.scale)
        return self.scale_and_shift(unrows(transform(x, tau, batch.mean, batch.var, alpha, self.eps), z))

    def _evaluate(self, z: Tensor) -> Tensor:
        mixture, run = to_dtype(self.mixture, z), to_dtype(self.running, z)
        alpha = amplitude(run.weight, self.scale)
        if self._evaluation_needs_autograd(z) or _is_recorded():
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

    def _require_finite(self, value: Tensor) -> None:
        if value.is_meta or (value.is_cuda and torch.cuda.is_current_stream_capturing()):
            return  # no numbers; or into a CUDA graph, where nothing may wait for the device
        if not math.isfinite(float(value)):
            self._refuse_infinite()

    def _refuse_infinite(self) -> NoReturn:
        raise NormInputError(
            f"{self.label} in training mode got values that are not finite, or whose squares are not; "
            "look for the layer before it that produced them (a smaller learning rate often helps)"
        )

    # the mixture and the running moments

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own decorator carries no types
    @torch.no_grad()
    def _seed(self, z: Tensor) -> None:
        if z.is_meta:
            return
        generator = torch.Generator().manual_seed(self.seed)
        samples = rows(wide(z)).transpose(1, 2).reshape(-1, self.channels)
        if samples.shape[0] > SEED_SAMPLES:
            samples = samples[torch.randperm(samples.shape[0], generator=generator)[:SEED_SAMPLES].to(z.device)]
        self._require_finite(samples.square().sum())
        self._set_mixture(self._fit(samples, generator))

    def _fit(self, samples: Tensor, generator: torch.Generator) -> Mixture:
        return seed_mixture(samples, self.k, generator, eps=self.eps)

    @torch.no_grad()
    def _set_mixture(self, mixture: Mixture) -> None:
        for buffer, value in zip(self.mixture, mixture, strict=True):
            buffer.copy_(value)
            if self.sync and _is_distributed():
                torch.distributed.broadcast(buffer, 0)
        self.seeded.fill_(True)
        self._is_seeded = True

    def _mixture_of_this_pass(self) -> Mixture:
        # activation checkpointing runs forward again inside backward: that run must see the mixture of the first one
        return self._before if _recomputing() and self._before is not None else self.mixture

    @torch.no_grad()
    def _track(self, batch: Moments, batch_of_em: Moments) -> None:
        """Move the running moments toward those of the batch, and the mixture toward those of its EM step."""
        if _recomputing():
            return
        self.num_batches_tracked += 1
        if self.momentum is None:
            self._average(batch)
            return
        if not torch.compiler.is_compiling():
            self._before = Mixture(*(b.clone() for b in self.mixture))
        rate: float | Tensor
        if self.num_batches_tracked.device.type == "cpu" and not torch.compiler.is_compiling():
            rate = max(self.momentum, 1 / int(self.num_batches_tracked))
        else:  # without a look at the device
            rate = torch.reciprocal(self.num_batches_tracked.to(self.running_weight.dtype)).clamp_min(self.momentum)
        _toward(self.running, batch, rate)
        _toward(self.mixture, batch_of_em, rate)

    def _average(self, batch: Moments) -> None:
        """Pool the batch with all those since the last reset (Chan's update): the order of batches does not matter."""
        old, new = self.running_count, batch.mass.to(self.running_count.dtype)
        total = old + new
        part = (new / total.clamp_min(torch.finfo(total.dtype).tiny)).reshape(self.k, -1)
        shift = batch.mean - self.running_mean
        spread = shift.square() * part * (1 - part)
        self.running_var.copy_(torch.lerp(self.running_var, batch.var.to(self.running_var.dtype), part) + spread)
        self.running_mean.add_(shift * part)
        self.running_count.copy_(total)
        self.running_weight.copy_(total / total.sum(0, keepdim=True))

    def _reduce(self) -> Reduce:
        return _all_reduce if self.sync and _is_distributed() else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        mean = state_dict.get(f"{prefix}running_mean")
        if f"{prefix}mixture_mean" not in state_dict and mean is not None and mean.shape == (self.channels,):
            # a batch norm's state: load_state_dict hands over a copy of the caller's dict, so it may be changed
            own = {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}
            state_dict.update({prefix + name: v for name, v in self._state_of_batchnorm(own).items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._is_seeded = bool(self.seeded)
        self._before = self._pending = None

    def __getstate__(self) -> dict[str, Any]:
        # what is only about the pass under way is neither copied nor pickled
        return self.__dict__ | {"_before": None, "_pending": None}

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

    @staticmethod
    def has_learned(old: nn.Module) -> bool:
        """Whether ``old`` is a batch norm whose running statistics are not those that it started with."""
        if not isinstance(old, _BatchNorm) or old.running_mean is None or old.running_var is None:
            return False
        mean, var = old.running_mean, old.running_var
        return not mean.is_meta and (bool(mean.any()) or bool((var != 1).any()))

    @torch.no_grad()
    def adopt(self, bn: nn.Module) -> None:
        """Compute from now on, in evaluation mode, what the batch norm ``bn`` computes; see :meth:`from_batchnorm`.

        Raises:
            SpecError: this layer has no weight and bias, and cannot do without.
        """
        assert isinstance(bn, _BatchNorm)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        state = {"running_mean": bn.running_mean, "running_var": (bn.running_var + bn.eps - self.eps).clamp_min(0)}
        if bn.num_batches_tracked is not None:
            state["num_batches_tracked"] = bn.num_batches_tracked
        if self.weight is not None and self.bias is not None:
            state["weight"] = self.weight.new_ones(self.channels) if bn.weight is None else bn.weight
            state["bias"] = self.bias.new_zeros(self.channels) if bn.bias is None else bn.bias
        elif bn.weight is not None or (self.k > 1 and self.scale == "fisher"):
            raise SpecError(f"{self.label} without weight and bias cannot compute what {bn} does: use affine=True")
        self.load_state_dict(state)
        self.sync = self.sync or isinstance(bn, nn.SyncBatchNorm)

    def _state_of_batchnorm(self, state: dict[str, Any]) -> dict[str, Any]:
        """This layer's state that computes, in evaluation mode, what a batch norm of the given state computes."""
        mean, var = state["running_mean"], state["running_var"]
        noise = torch.randn(self.k, self.channels, generator=torch.Generator().manual_seed(self.seed)).to(mean)
        made = {
            "mixture_mean": mean + 0.1 * noise * torch.sqrt(var + self.eps),
            "mixture_var": var.expand_as(noise),
            "running_mean": mean.expand_as(noise),
            "running_var": var.expand_as(noise),
            "mixture_weight": torch.full_like(self.mixture_weight, 1 / self.k),
            "running_weight": torch.full_like(self.running_weight, 1 / self.k),
            "running_count": torch.zeros_like(self.running_count),
            "num_batches_tracked": torch.as_tensor(state.get("num_batches_tracked", 1)).clamp_min(1),
            "seeded": torch.tensor(True),
        }
        if "weight" in state and self.scale == "fisher":
            made["weight"] = state["weight"] / math.sqrt(self.k)
        return made

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


def to_dtype(mixture: Mixture, like: Tensor) -> Mixture:
    """The mixture in the dtype of ``like``."""
    return Mixture(*(t.to(like.dtype) for t in mixture))


def _detached(batch: Moments) -> Moments:
    return Moments(*(t.detach() for t in batch))


def _toward(target: Mixture, batch: Moments, rate: float | Tensor) -> None:
    """One stepwise EM update: a component moves as far as its part of the new mass says."""
    total = batch.mass.sum(0, keepdim=True)
    part = (batch.mass / total).to(target.weight.dtype).mul_(rate)
    target.weight.mul_(1 - rate).add_(part)
    part = (part / target.weight.clamp_min(torch.finfo(part.dtype).tiny)).to(target.mean.dtype).reshape(len(part), -1)
    unbiased = batch.var * (total / (total - 1).clamp_min_(1))
    target.mean.lerp_(batch.mean.to(target.mean.dtype), part)
    target.var.lerp_(unbiased.to(target.var.dtype), part)


def _recomputing() -> bool:
    """Whether autograd's backward pass is running: a forward pass now is activation checkpointing doing it again."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def _is_recorded() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace writes down what is done: then plain operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _all_reduce(x: Tensor) -> None:
    torch.distributed.all_reduce(x)
