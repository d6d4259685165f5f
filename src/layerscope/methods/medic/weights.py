"""How much each neuron matters for one clean input: pure functions, no module.

Source: Xu et al., "MEDIC: Remove Model Backdoors via Importance Driven Cloning", CVPR 2023, as its released code
computes it. With z the normalized activation and g the teacher's loss gradient in the same units,

    p = softmax(tau z),   q = softmax(tau g)   over all neurons of one sample,   w = sqrt(p q).

By the Cauchy-Schwarz inequality 0 < sum(w) <= 1, with equality exactly if p = q. Adding a constant to z or g
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerscope.errors import did_you_mean
from layerscope.methods.medic.errors import MedicError

Kind = Literal["signed", "magnitude", "activation", "impact", "uniform"]
#: (z, g, sharpness) -> w, all [B, ...]
Importance = Callable[[Tensor, Tensor | None, float], Tensor]

#: kind -> (looks at the activation, looks at the loss gradient)
LOOKS: Mapping[str, tuple[bool, bool]] = {
    "signed": (True, True), "magnitude": (True, True), "activation": (True, False), "impact": (False, True),
    "uniform": (False, False),
}  # fmt: skip

#: A channel whose sigma is not above this is dead: it says nothing about the input, and is not compared.
SMALLEST_SIGMA = 1e-5


def importance(z: Tensor, g: Tensor | None, sharpness: float, kind: Kind | Importance = "signed") -> Tensor:
    """The weight of every neuron for every sample, [B, ...], a constant, float32 or wider.

    Args:
        z: normalized teacher activations [B, ...].
        g: teacher loss gradient times sigma [B, ...]; None where ``kind`` does not look at it.
        sharpness: tau, an inverse temperature: larger is sharper, 0 is uniform.
        kind: ``signed`` (as released), ``magnitude`` (softmax of |z|/rms and |g|/rms), ``activation`` (q uniform),
            ``impact`` (p uniform), ``uniform`` (1/D), or a function.

    Raises:
        MedicError: an unknown kind, a negative sharpness, or a kind that needs a gradient without one.
    """
    if callable(kind):
        return kind(z.detach(), None if g is None else g.detach(), sharpness).detach()
    log_p, log_q = criteria(z, g, sharpness, kind)
    # numbers below the smallest normal one make exp twenty times slower on a CPU, and weigh nothing
    w = (0.5 * (log_p + log_q)).clamp_min_(math.log(torch.finfo(log_p.dtype).tiny) + 1).exp_()
    return w.view(_by_memory(z).shape).permute(0, 3, 1, 2) if _channels_last(z) else w.view_as(z)


def criteria(z: Tensor, g: Tensor | None, sharpness: float, kind: Kind) -> tuple[Tensor, Tensor]:
    """``(log p, log q)`` of :func:`importance`, [B, D]; a criterion that ``kind`` does not look at is uniform.

    Neurons stand in the order in which ``z`` has them in memory.
    """
    if kind not in LOOKS:
        raise MedicError(f"no importance {kind!r}: {did_you_mean(str(kind), LOOKS)}, or a function (z, g, tau) -> w")
    if sharpness < 0:
        raise MedicError(f"sharpness must not be negative; got {sharpness}")
    by_activation, by_impact = LOOKS[kind]
    if by_impact and g is None:
        raise MedicError(f"importance {kind!r} needs the loss gradient at the tap")
    flat = wide(_by_memory(z.detach())).flatten(1)
    uniform = flat.new_full((), -math.log(max(1, flat.shape[1]))).expand_as(flat)
    log_p = _log_softmax(flat, sharpness, kind) if by_activation else uniform
    log_q = uniform
    if by_impact and g is not None:
        ordered = g.detach().permute(0, 2, 3, 1) if _channels_last(z) else g.detach()
        log_q = _log_softmax(wide(ordered).flatten(1), sharpness, kind)
    return log_p, log_q


def effective_count(log_p: Tensor) -> float:
    """exp(entropy) of a criterion, mean over samples: how many neurons share its weight.

    D for a criterion that is inert, near 1 for one that looks at a single neuron.
    """
    return float((-(log_p.exp() * log_p).sum(1)).exp().mean())


def clone_loss(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    sigmas: Mapping[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Importance-weighted squared difference in units of the teacher's sigma, mean over samples.

        sum_l mean_b sum_i w_l ((A_l^T - A_l^S) / sigma_l)^2

    A channel with sigma <= 1e-5 is left out: dividing by such a number would let a channel that says nothing about the
    input outweigh all others.

    Args:
        teacher: tap name -> activations [B, ...]; taken as constants.
        student: the same of the student; the gradient flows through these.
        weights: from :func:`importance`.
        sigmas: per channel, broadcastable to the activations.

    Returns:
        The total and the part of every tap.

    Raises:
        MedicError: shapes of the two networks differ at a tap, or there is none.
    """
    return weighted_distances(teacher, student, weights, {name: scale_of(sigma) for name, sigma in sigmas.items()})


def scale_of(sigma: Tensor) -> Tensor:
    """1 / sigma, and 0 for a channel without spread."""
    return torch.where(sigma > SMALLEST_SIGMA, 1 / sigma.clamp_min(SMALLEST_SIGMA), 0)


def weighted_distances(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`clone_loss` with the scales of the channels worked out: a step calls it, they never change."""
    if not teacher:
        raise MedicError("there is no tap to compare at")
    parts: dict[str, Tensor] = {}
    for name, target in teacher.items():
        ours = student[name]
        if ours.shape != target.shape:
            raise MedicError(
                f"tap {name!r}: the teacher gives {tuple(target.shape)}, the student {tuple(ours.shape)}: "
                "the factory builds another architecture"
            )
        both = (wide(ours), wide(target.detach()))
        parts[name] = _Distance.apply(*both, weights[name].detach(), scales[name])  # type: ignore[no-untyped-call]
    return torch.stack(list(parts.values())).sum(), parts


class _Distance(torch.autograd.Function):
    """sum_i w ((target - ours) scale)^2, mean over samples: half the operations of the same written out."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, target: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        difference = (target - ours).mul_(scale)
        weighted = difference * w
        ctx.save_for_backward(weighted, scale)
        return (weighted * difference).sum() / len(ours)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        weighted, scale = ctx.saved_tensors
        return weighted * (scale * slope * (-2 / len(weighted))), None, None, None


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _by_memory(x: Tensor) -> Tensor:
    """The same numbers, axes in the order of memory, so that flattening them copies nothing."""
    return x.permute(0, 2, 3, 1) if _channels_last(x) else x


def _log_softmax(x: Tensor, sharpness: float, kind: str) -> Tensor:
    flat = x
    if kind == "magnitude":
        rms = flat.square().mean(1, keepdim=True).sqrt()
        flat = flat.abs() / rms.clamp_min(torch.finfo(flat.dtype).tiny)
    return (sharpness * flat).log_softmax(1)
