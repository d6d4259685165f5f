"""What a mixture layer remembers between batches: the mixture, the running moments, and how both move."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.errors import SpecError
from layerscope.norms.base import ChannelNorm, NormInputError, wide
from layerscope.norms.mixture_fused import Watch, capturing
from layerscope.norms.mixture_kernel import rows
from layerscope.norms.mixture_math import Mixture, Moments, seed_mixture

#: Samples that a mixture is seeded from.
SEED_SAMPLES = 4096


class MixtureState(ChannelNorm):
    """Seeding, stepwise EM, running moments, checkpoints and what a batch norm hands over; no forward pass.

    Buffers: ``mixture_*`` gives the posteriors, ``running_*`` the moments of evaluation mode; shares (K,), means and
    variances (K, C).
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
        self, channels: int, k: int, scale: str, momentum: float | None, eps: float, affine: bool, sync: bool, seed: int
    ) -> None:
        super().__init__(channels, eps=eps, affine=affine)
        if k < 1:
            raise SpecError(f"mixture needs at least one component, got k={k}")
        self.k, self.scale, self.momentum, self.sync, self.seed = k, scale, momentum, sync, seed
        for prefix in ("mixture", "running"):
            self.register_buffer(f"{prefix}_weight", self._shares())
            self.register_buffer(f"{prefix}_mean", torch.zeros(k, channels))
            self.register_buffer(f"{prefix}_var", torch.ones(k, channels))
        self.register_buffer("running_count", torch.zeros_like(self._shares()))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.register_buffer("seeded", torch.tensor(False))
        self._is_seeded = False  # the same, without a look at the device
        self._before: Mixture | None = None
        self._pending: Watch | None = None

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

    def _require_finite(self, value: Tensor) -> None:
        if capturing(value):  # nothing may wait for the device: the next call outside of the graph will look
            self._pending = Watch(torch.isfinite(value), self._refuse_infinite)
        elif not value.is_meta and not math.isfinite(float(value)):
            self._refuse_infinite()

    def _settle(self, x: Tensor) -> None:
        """Raise now if an earlier batch was not finite and nobody has said so."""
        if self._pending is not None and not capturing(x):
            pending = self._pending
            self._pending = pending if pending.captured else None
            pending.require()

    def _refuse_infinite(self) -> NoReturn:
        raise NormInputError(
            f"{self.label} in training mode got values that are not finite, or whose squares are not; "
            "look for the layer before it that produced them (a smaller learning rate often helps)"
        )

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
            if self.sync and is_distributed():
                torch.distributed.broadcast(buffer, 0)
        self.seeded.fill_(True)
        self._is_seeded = True

    def _mixture_of_this_pass(self) -> Mixture:
        # activation checkpointing runs forward again inside backward: that run must see the mixture of the first one
        return self._before if recomputing() and self._before is not None else self.mixture

    @torch.no_grad()
    def _track(self, batch: Moments, batch_of_em: Moments) -> None:
        """Move the running moments toward those of the batch, and the mixture toward those of its EM step."""
        if recomputing():
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        mean = state_dict.get(f"{prefix}running_mean")
        if f"{prefix}mixture_mean" not in state_dict and mean is not None and mean.shape == (self.channels,):
            # a batch norm's state: load_state_dict hands over a copy of the caller's dict, so it may be changed
            own = {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}
            state_dict.update({prefix + name: v for name, v in self._state_of_batchnorm(own).items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._is_seeded = not self.seeded.is_meta and bool(self.seeded)
        self._before = self._pending = None

    def __getstate__(self) -> dict[str, Any]:
        # what is only about the pass under way is neither copied nor pickled
        return self.__dict__ | {"_before": None, "_pending": None}

    @staticmethod
    def has_learned(old: nn.Module) -> bool:
        """Whether ``old`` is a batch norm whose running statistics are not those that it started with."""
        if not isinstance(old, _BatchNorm):
            return False
        mean, var = old.running_mean, old.running_var
        if mean is None or var is None or mean.is_meta:
            return False
        return bool(mean.any()) or bool((var != 1).any())

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
        elif bn.affine or (self.k > 1 and self.scale == "fisher"):
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


def to_dtype(mixture: Mixture, like: Tensor) -> Mixture:
    """The mixture in the dtype of ``like``."""
    return Mixture(*(t.to(like.dtype) for t in mixture))


def detached(batch: Moments) -> Moments:
    """The same without history."""
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


def recomputing() -> bool:
    """Whether autograd's backward pass is running: a forward pass now is activation checkpointing doing it again."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def is_distributed() -> bool:
    """Whether there are other processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
