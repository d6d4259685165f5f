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
from torch.nn import functional as F

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


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether probabilities and squares of this dtype need float32."""
    return dtype in (torch.float16, torch.bfloat16)


def _wide(p: Tensor) -> Tensor:
    return p.float() if is_narrow(p.dtype) else p


def _one(values: Tensor) -> Tensor:
    """1, or NaN if there is one among the values.

    A comparison with NaN is false: without this a network that has diverged would go on with signs that mean nothing.
    """
    return values.sum().mul_(0).add_(1)


def _gradient(grad: Tensor, p: Tensor) -> Tensor:
    wide = _wide(p)
    if torch.is_grad_enabled():  # a second derivative is asked for
        return grad * (_SLOPE * torch.exp(-wide * wide)).to(grad.dtype)
    return wide.square().neg_().exp_().mul_(_SLOPE).to(grad.dtype).mul_(grad)


class _Sample(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, generator: torch.Generator | None) -> Tensor:
        threshold = torch.erf(_wide(p))
        # erf(P) > 2 u - 1, u uniform on [0, 1): one comparison, and the result written as +1 / -1 without a branch
        uniform = torch.empty_like(threshold).uniform_(-1, 1, generator=generator)
        return uniform.lt_(threshold).mul_(2).sub_(_one(threshold)).to(p.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return _gradient(grads[0], p), None


class _Decide(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, u: Tensor) -> Tensor:
        return (u >= 0).to(p.dtype).mul_(2).sub_(_one(u).to(p.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return _gradient(grads[0], p), None


def inverse_norm(weight: Tensor) -> Tensor:
    """1 / |w_i|_2 of every row, [O], computed in float32 or wider; 0 for a row of zeros, which has no direction."""
    norm: Tensor = torch.linalg.vector_norm(_wide(weight).flatten(1), dim=1)
    return norm.reciprocal().nan_to_num(nan=torch.nan, posinf=0.0).to(weight.dtype)


def direction(weight: Tensor) -> Tensor:
    """w_i / |w_i|_2 of every row, in float32 or wider; zeros for a row of zeros. Shape of the weight."""
    wide = _wide(weight)
    return wide * inverse_norm(wide).view(-1, *[1] * (weight.ndim - 1))


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
    out: tuple[Tensor, Tensor] = _ScaledByNorm.apply(  # type: ignore[no-untyped-call]  # torch's own
        u, weight, beta, c, per_unit
    )
    return out[0]


def linear_by_norm(z: Tensor, weight: Tensor, beta: Tensor, c: Tensor | None) -> Tensor:
    """P = (z w^T) beta / |w| + c for z [..., I] and weight [O, I]: product and normalization in one node.

    The gradient of the weight is then one array that the product is added to, instead of two that are summed.
    """
    out: tuple[Tensor, ...] = _LinearByNorm.apply(z, weight, beta, c)  # type: ignore[no-untyped-call]  # torch's own
    return out[0]


def _scaled(u: Tensor, weight: Tensor, beta: Tensor, c: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """P, and 1 / |w|."""
    inverse = inverse_norm(weight)
    scale = (beta * inverse).view(shape)
    return (u * scale if c is None else torch.addcmul(c.view(shape), u, scale)), inverse


def _scaled_backward(
    grad: Tensor, u: Tensor, weight: Tensor, beta: Tensor, inverse: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, of the weight by way of its norm, of beta and of c."""
    over = [a for a in range(grad.ndim) if a != grad.ndim - len(shape)]
    scale = beta * inverse
    g_scale = (grad * u).sum(over)
    # d(1 / |w|) / dw = -w / |w|^3
    coefficient = -(g_scale * scale * inverse * inverse).view(-1, *[1] * (weight.ndim - 1))
    return grad * scale.view(shape), weight * coefficient, g_scale * inverse, grad.sum(over)


class _ScaledByNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        u: Tensor, weight: Tensor, beta: Tensor, c: Tensor | None, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        return _scaled(u, weight, beta, c, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        u, weight, beta, c, shape = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(u, weight, beta, output[1])
        ctx.shape, ctx.has_c = shape, c is not None

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        u, weight, beta, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, and the norm depends on the weight too
            inverse = inverse_norm(weight)
        g_u, g_weight, g_beta, g_c = _scaled_backward(grads[0], u, weight, beta, inverse, ctx.shape)
        return g_u, g_weight, g_beta, g_c if ctx.has_c else None, None


class _LinearByNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, weight: Tensor, beta: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        u = F.linear(z, weight)
        p, inverse = _scaled(u, weight, beta, c, (-1,))
        return p, u, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        z, weight, beta, c = inputs
        _, u, inverse = output
        ctx.mark_non_differentiable(u, inverse)
        ctx.save_for_backward(z, weight, beta, u, inverse)
        ctx.has_c = c is not None

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        z, weight, beta, u, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            u, inverse = F.linear(z, weight), inverse_norm(weight)
        g_u, g_weight, g_beta, g_c = _scaled_backward(grads[0], u, weight, beta, inverse, (-1,))
        g_weight.addmm_(g_u.flatten(0, -2).t(), z.flatten(0, -2))
        g_z = g_u @ weight if ctx.needs_input_grad[0] else None
        return g_z, g_weight, g_beta, g_c if ctx.has_c else None
