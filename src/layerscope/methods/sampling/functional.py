"""The sampling unit as pure functions: P in, +1 or -1 out, and the gradient of the mean.

    phi = (1 + erf(P)) / 2           probability of +1
    E z = 2 phi - 1 = erf(P)
    d z / d P := d E z / d P = 2 / sqrt(pi) * exp(-P^2)

The estimator hands on the hard sample and, backward, the derivative of its mean, whatever the sample was. It is exact
where a linear loss follows and biased, of low variance, elsewhere. Source: arXiv 1910.12316.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["marginal", "connection", "unit", "sign", "mean"]
MODES: tuple[Mode, ...] = ("marginal", "connection", "unit", "sign", "mean")

_SLOPE = 2 / math.sqrt(math.pi)


def firing_probability(p: Tensor) -> Tensor:
    """(1 + erf(P)) / 2, in float32 or wider. In [0, 1]."""
    return 0.5 * (1 + torch.erf(_wide(p)))


def sample(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """+1 with probability (1 + erf(P)) / 2, else -1, each element by itself. Same shape and dtype as P.

    The uniforms are drawn in float32 or wider: in float16 they come in steps of 2^-11, and probabilities below that
    would never be sampled right. Saves P and nothing else for the backward pass.
    """
    out: Tensor = _Sample.apply(p, generator)  # type: ignore[no-untyped-call]  # torch's own
    return out


def hard_sign(p: Tensor) -> Tensor:
    """+1 where P >= 0, else -1, with the same gradient as :func:`sample`. No randomness."""
    out: Tensor = _Decide.apply(p, p)  # type: ignore[no-untyped-call]  # torch's own
    return out


def decide(u: Tensor, p: Tensor) -> Tensor:
    """+1 where the pre-activation u >= 0, else -1; the gradient goes to P, the law that u follows."""
    out: Tensor = _Decide.apply(p, u)  # type: ignore[no-untyped-call]  # torch's own
    return out


def mean(p: Tensor) -> Tensor:
    """erf(P): the mean of :func:`sample`, with its true gradient."""
    return torch.erf(_wide(p)).to(p.dtype)


def _wide(p: Tensor) -> Tensor:
    return p.float() if p.dtype in (torch.float16, torch.bfloat16) else p


def _gradient(grad: Tensor, p: Tensor) -> Tensor:
    wide = _wide(p)
    return grad * (_SLOPE * torch.exp(-wide * wide)).to(grad.dtype)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, generator: torch.Generator | None) -> Tensor:
        ctx.save_for_backward(p)
        threshold = torch.erf(_wide(p))
        # erf(P) > 2 u - 1, u uniform on [0, 1): one comparison, and the result written as +1 / -1 without a branch
        uniform = torch.empty_like(threshold).uniform_(-1, 1, generator=generator)
        return uniform.lt_(threshold).mul_(2).sub_(1).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return _gradient(grads[0], p), None


class _Decide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return (u >= 0).to(p.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return _gradient(grads[0], p), None


def scaled_by_norm(u: Tensor, weight: Tensor, beta: Tensor, c: Tensor | None, per_unit: tuple[int, ...]) -> Tensor:
    """P = u beta / |w| + c with u = w.z already there: weight normalization after the product, in one node.

    Normalizing the product instead of the weight touches every weight once less, forward and backward.

    Args:
        u: products [N, O, ...] of inputs with the raw weights; units on the axis that ``per_unit`` broadcasts to.
        weight: raw weights [O, ...].
        beta: magnitudes [O].
        c: biases [O] or None.
        per_unit: shape in which [O] broadcasts against u, such as (-1, 1, 1).
    """
    out: Tensor = _ScaledByNorm.apply(u, weight, beta, c, per_unit)  # type: ignore[no-untyped-call]  # torch's own
    return out


def inverse_norm(weight: Tensor) -> Tensor:
    """1 / |w_i|_2 of every row, [O], computed in float32 or wider; 0 for a row of zeros, which has no direction."""
    norm: Tensor = torch.linalg.vector_norm(_wide(weight).flatten(1), dim=1)
    return norm.reciprocal().nan_to_num_(posinf=0.0).to(weight.dtype)


class _ScaledByNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, beta: Tensor, c: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        inverse = inverse_norm(weight)
        ctx.save_for_backward(u, weight, beta, inverse)
        ctx.shape, ctx.has_c = shape, c is not None
        scale = (beta * inverse).view(shape)
        return u * scale if c is None else torch.addcmul(c.view(shape), u, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        u, weight, beta, inverse = ctx.saved_tensors
        grad = grads[0]
        over = [a for a in range(grad.ndim) if a != grad.ndim - len(ctx.shape)]
        scale = beta * inverse
        g_scale = (grad * u).sum(over)
        # d(1 / |w|) / dw = -w / |w|^3
        coefficient = -(g_scale * scale * inverse * inverse).view(-1, *[1] * (weight.ndim - 1))
        g_c = grad.sum(over) if ctx.has_c else None
        return grad * scale.view(ctx.shape), weight * coefficient, g_scale * inverse, g_c, None
