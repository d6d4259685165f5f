"""The mixture layer's passes on a GPU, through the kernels of ``mixture_triton``: when they are taken, and how.

The kernels serve tensors on a GPU in float32, float16 or bfloat16, up to 16 components, where Triton can be imported
(torch's CUDA builds bring it). Everything else takes ``mixture_kernel``: the CPU, float64, ``grad_posterior``, and a
forward pass under ``torch.compile`` or ``torch.export``. ``LAYERSCOPE_TRITON=0`` in the environment turns them off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerscope.norms.mixture_kernel import Reduce, near_mean, rows
from layerscope.norms.mixture_math import Mixture, Moments

#: Most components that the kernels take.
MOST_COMPONENTS = 16
#: Positions that the centre is a mean of, about.
CENTRE_SAMPLES = 8192


def usable(x: Tensor, k: int) -> bool:
    """Whether the kernels take this tensor; see the module's docstring."""
    return (
        x.is_cuda
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.numel() > 0
        and k <= MOST_COMPONENTS
        and os.environ.get("LAYERSCOPE_TRITON", "1") != "0"
        and _has_triton()
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def capturing(x: Tensor) -> bool:
    """Whether what is done now goes into a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class Watch:
    """Whether a batch was finite, asked for later so that nothing waits for the device now.

    ``refuse`` raises. In a CUDA graph the flag is that of the last replay.
    """

    def __init__(self, finite: Tensor, refuse: Callable[[], NoReturn]) -> None:
        self.captured, self.said, self.refuse = capturing(finite), False, refuse
        self.event = None
        self.host = finite
        if finite.is_cuda and not self.captured:
            self.host = torch.empty_like(finite, device="cpu", pin_memory=True)
            self.host.copy_(finite, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own signature
            self.event.record(torch.cuda.current_stream(finite.device))

    def require(self) -> None:
        """Raise, once, if it was not. Waits for that forward pass, which by now has ended."""
        if self.event is not None:
            self.event.synchronize()
        if not self.said and not bool(self.host):
            self.said = not self.captured
            self.refuse()


class Tracked(NamedTuple):
    """What a training pass moves in place."""

    mixture: Mixture
    running: Mixture
    batches: Tensor
    momentum: float


class Passed(NamedTuple):
    """A training pass: the output, the batch's moments, the mixture before it, and whether all was finite."""

    y: Tensor
    batch: Moments
    before: Mixture
    watch: Watch


def train(
    x: Tensor,
    mixture: Mixture,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    temperature: float,
    scale: str,
    eps: float,
    reduce: Reduce,
    track: Tracked | None,
    refuse: Callable[[], NoReturn],
) -> Passed:
    """Normalize ``x`` with the moments of the batch; moves what ``track`` holds unless a moment is not finite.

    Then the backward pass calls ``refuse``, which raises.
    """
    from layerscope.norms import mixture_triton as kernels

    k = len(mixture.weight)
    with torch.no_grad(), _device(x):
        source = rows(x)
        plan = kernels.Plan(source, k)
        centre = near_mean(source, CENTRE_SAMPLES, reduce)
        kept = centre.new_empty(k + 2 * k * plan.C)
        table, _ = kernels.prepare(mixture, plan, centre, temperature, eps, kept)
        tau, sums = kernels.collect(source, plan, centre, table, temperature, track is not None and temperature != 1)
        if reduce is not None:
            reduce(sums)
        affine = None if weight is None or bias is None else (weight, bias)
        done = kernels.finish(sums, plan, centre, affine, eps, scale == "unit", track)
    mean, var, table_scale, table_offset, mass, alpha, finite = done
    saved = (tau, centre, mean, var, mass, alpha)
    watch = Watch(finite, refuse)
    y: Tensor = _Fused.apply(x, weight, bias, saved, (table_scale, table_offset), plan, eps, reduce, watch)  # type: ignore[no-untyped-call]  # torch's own signature
    pairs = kept[k:].view(2, k, plan.C)
    return Passed(y, Moments(mass, mean, var), Mixture(kept[:k], pairs[0], pairs[1]), watch)


@torch.no_grad()
def evaluate(
    x: Tensor, mixture: Mixture, running: Mixture, alpha: Tensor, affine: tuple[Tensor, Tensor], t: float, eps: float
) -> Tensor:
    """Normalize ``x`` with the running moments; outside of autograd."""
    from layerscope.norms import mixture_triton as kernels

    with _device(x):
        source = rows(x)
        plan = kernels.Plan(source, len(mixture.weight))
        table, centre = kernels.prepare(mixture, plan, None, t, eps, None)
        slope = alpha * torch.rsqrt(running.var.float() + eps) * affine[0]
        y = torch.empty_like(x)
        kernels.evaluate(
            source, rows(y), plan, centre, table, slope, affine[1] + (centre - running.mean.float()) * slope
        )
    return y


class _Fused(torch.autograd.Function):
    """The second pass forward, and the closed-form backward pass of ``mixture_kernel.MixtureTransform``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        saved: tuple[Tensor, ...],
        tables: tuple[Tensor, Tensor],
        plan: Any,
        eps: float,
        reduce: Reduce,
        watch: Watch,
    ) -> Tensor:
        """``saved``: tau, centre, mean, var, mass, alpha."""
        from layerscope.norms import mixture_triton as kernels

        y = torch.empty_like(x)
        with _device(x):
            kernels.normalize(rows(x), rows(y), plan, saved[0], saved[1], *tables)
        ctx.save_for_backward(x, weight, bias, *saved)
        ctx.plan, ctx.eps, ctx.reduce, ctx.watch = plan, eps, reduce, watch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Two passes over x and the gradient; and the first time after the forward pass that waiting costs little."""
        if not capturing(grad):
            ctx.watch.require()
        from layerscope.norms import mixture_triton as kernels

        x, weight, bias, tau, centre, mean, var, mass, alpha = ctx.saved_tensors
        with torch.no_grad(), _device(x):
            if grad.stride() != x.stride() or grad.dtype != x.dtype:
                grad = torch.empty_like(x).copy_(grad)
            source, upstream = rows(x), rows(grad)
            local = kernels.collect_back(source, upstream, ctx.plan, tau, centre)
            total = local
            if ctx.reduce is not None:
                total = local.clone()
                ctx.reduce(total)
            saved = (mean, var, mass, alpha, centre)
            done = kernels.finish_back(local, total, ctx.plan, saved, weight, ctx.eps)
            grad_weight, grad_bias = done[:2]
            dx = None
            if ctx.needs_input_grad[0]:
                dx = torch.empty_like(x)
                kernels.gradient(source, upstream, rows(dx), ctx.plan, tau, centre, done[2:])
        if weight is None or bias is None:
            return dx, None, None, None, None, None, None, None, None
        return dx, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None, None, None, None
