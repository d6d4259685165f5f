"""The mixture transform as fast as plain torch allows: two passes forward, two backward, in blocks that fit the cache.

Forward: (1) posteriors of a block and its weighted sums, (2) y = x * (tau A) + tau O. Backward likewise: (1) the sums
tau^T g and tau^T (g x), (2) dx. A block's temporaries (x, x^2 and K-component tables) stay in the second-level cache,
which halves the time against whole-tensor operations. Saved for backward: x (as batch norm does) and tau.

With g = dL/dy * weight, r = (var + eps)^-1/2, A = alpha r, Q = tau^T g, P = tau^T (g x), posteriors constant::

    dmean = -A Q        dvar = -1/2 alpha r^3 (P - mean Q)
    dx    = g (tau A) + tau ((dmean - 2 mean dvar) / n) + 2 x (tau (dvar / n))
    dweight_c = sum_k A_kc (P - mean Q)_kc of the unscaled gradient,   dbias_c = sum_k Q_kc
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerscope.norms.mixture_math import Mixture, Moments, quadratic_form

#: Numbers of x in one block: with its temporaries about 1.3 MB; best between 60,000 and 100,000 on a 2 MB L2.
BLOCK = 80_000
#: The same in evaluation, which keeps fewer temporaries.
EVALUATION_BLOCK = 160_000

#: Positions that one step of EM takes at least.
EM_SAMPLES = 4096

#: Adds a tensor over all processes, in place; None in a single process.
Reduce = Callable[[Tensor], None] | None


def rows(x: Tensor) -> Tensor:
    """[N, C], tokens [N, S, C] or maps [N, C, *] as a view [B, C, S]; memory is copied only for odd strides."""
    if x.ndim == 2:
        return x.t().unsqueeze(0)
    if x.ndim == 3:
        return x.flatten(0, 1).t().unsqueeze(0)
    if not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        return x.movedim(1, -1).flatten(0, -2).t().unsqueeze(0)
    return x.flatten(2)


def dense(x: Tensor) -> Tensor:
    """``x``, copied if :func:`rows` could not view it."""
    if x.is_contiguous() or (x.ndim > 3 and x.movedim(1, -1).is_contiguous()):
        return x
    return x.contiguous()


def blocks(x: Tensor, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Slices of the first and last axis of [B, C, S] that cut it into blocks of about ``size`` numbers."""
    b, c, s = x.shape
    everything = slice(None)
    if x.device.type != "cpu":
        yield everything, everything
    elif b > 1:
        step = max(1, size // (c * s))
        for start in range(0, b, step):
            yield slice(start, start + step), everything
    else:
        step = max(1, size // c)
        for start in range(0, s, step):
            yield everything, slice(start, start + step)


def unrows(y: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`rows`: [B, C, S] in the shape of ``like``."""
    if like.ndim == 2:
        return y[0].t()
    if like.ndim == 3:
        return y[0].t().view(like.shape)
    if y.shape[0] != like.shape[0]:
        return y[0].t().reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)
    return y.reshape(like.shape)


def scratch(x: Tensor, channels: int, size: int = BLOCK) -> Tensor:
    """Room for ``channels`` channels of the largest block of [B, C, S], in the memory order of ``x``.

    Allocated once per pass: fresh memory for every block would cost more in page faults than the arithmetic.
    """
    b, _, s = x.shape
    outer, inner = next(blocks(x, size))
    b, s = len(range(b)[outer]), len(range(s)[inner])
    if _channels_last(x):
        return x.new_empty(b, s, channels).transpose(1, 2)
    return x.new_empty(b, channels, s)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


def spread(table: Tensor, tau: Tensor, room: Tensor) -> Tensor:
    """tau-weighted rows of ``table`` (K, C) at every position of a block: [B, C, S], written into ``room``."""
    b, _, s = tau.shape
    out = room[:b, :, :s]
    if _channels_last(room):
        torch.bmm(tau.transpose(1, 2), table.expand(b, -1, -1), out=out.transpose(1, 2))
    else:
        torch.bmm(table.t().expand(b, -1, -1), tau, out=out)
    return out


class _Posterior:
    """Posteriors of one block after another, in the same memory."""

    def __init__(self, x: Tensor, mixture: Mixture, centre: Tensor, temperature: float, block: int = BLOCK) -> None:
        self.centre = centre.unsqueeze(1)
        form, offset = quadratic_form(mixture, centre)
        form = form / temperature
        self.linear, self.square = form[:, : x.shape[1]], form[:, x.shape[1] :]
        self.offset = offset / temperature
        self.z2 = scratch(x, x.shape[1], block)
        self.logits = self.z2.new_empty(self.z2.shape[0], len(form), self.z2.shape[2])

    def __call__(self, block: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log posterior [B, K, S] over the temperature, and z^2; ``z`` receives block - centre."""
        b, _, s = block.shape
        torch.sub(block, self.centre, out=z)
        z2 = torch.mul(z, z, out=self.z2[:b, :, :s])
        logits = torch.baddbmm(self.offset, self.linear.expand(b, -1, -1), z, out=self.logits[:b, :, :s])
        return logits.baddbmm_(self.square.expand(b, -1, -1), z2), z2


def posterior_moments(
    x: Tensor, mixture: Mixture, temperature: float, reduce: Reduce = None, em: bool = True
) -> tuple[Tensor, Moments, Moments]:
    """Posteriors and the moments they give, in one pass over the blocks; outside of autograd.

    Args:
        x: [B, C, S].
        mixture: gives the posteriors.
        temperature: divides the log posterior.
        reduce: sums over processes.
        em: also compute the moments under the posteriors at temperature 1, the M-step of EM proper, from the first
            blocks (at least ``EM_SAMPLES`` positions). Tempered posteriors would make the components merge.

    Returns:
        tau [B, K, S], its moments, and those of the EM step (the same ones at temperature 1 or without ``em``).
    """
    b, c, s = x.shape
    centre = x.mean((0, 2))
    if reduce is not None:
        packed = torch.cat([centre * (b * s), centre.new_tensor([b * s])])
        reduce(packed)
        centre = packed[:-1] / packed[-1]
    posterior = _Posterior(x, mixture, centre, temperature)
    room = scratch(x, c)
    tau = x.new_empty(b, mixture.mean.shape[0], s)
    sums = x.new_zeros(2, mixture.mean.shape[0], 2 * c + 1)
    wanted = EM_SAMPLES if em and temperature != 1 else 0
    for outer, inner in blocks(x):
        block = x[outer, :, inner]
        z = room[: block.shape[0], :, : block.shape[2]]
        logits, z2 = posterior(block, z)
        if wanted > 0:
            _add_sums(sums[1], torch.softmax(logits * temperature, 1), z, z2)
            wanted -= block.shape[0] * block.shape[2]
        _add_sums(sums[0], torch.softmax(logits, 1, out=tau[outer, :, inner]), z, z2)
    if reduce is not None:
        reduce(sums)
    batch = _moments_about(centre, sums[0])
    return tau, batch, _moments_about(centre, sums[1]) if em and temperature != 1 else batch


def _add_sums(sums: Tensor, tau: Tensor, z: Tensor, z2: Tensor) -> None:
    """Add the sums of (z, z^2, 1) weighted with the posteriors to ``sums``, (K, 2C + 1)."""
    c = z.shape[1]
    sums[:, :c] += torch.bmm(tau, z.transpose(1, 2)).sum(0)
    sums[:, c:-1] += torch.bmm(tau, z2.transpose(1, 2)).sum(0)
    sums[:, -1] += tau.sum((0, 2))


def _moments_about(centre: Tensor, sums: Tensor) -> Moments:
    """Moments from sums of (z, z^2, 1) weighted with the posteriors, (K, 2C + 1)."""
    mass, c = sums[:, -1], len(centre)
    ratio = sums[:, :-1] / mass.clamp_min(torch.finfo(sums.dtype).tiny).unsqueeze(1)
    first, second = ratio[:, :c], ratio[:, c:]
    return Moments(mass, first + centre, (second - first.square()).clamp_min(0))


def evaluate(x: Tensor, out: Tensor, mixture: Mixture, temperature: float, scale: Tensor, offset: Tensor) -> None:
    """Write x * (tau scale) + tau offset into ``out``, posteriors recomputed block by block; outside of autograd."""
    centre = mixture.weight @ mixture.mean
    posterior = _Posterior(x, mixture, centre, temperature, EVALUATION_BLOCK)
    offset = offset + centre * scale
    room = scratch(x, x.shape[1], EVALUATION_BLOCK)
    for outer, inner in blocks(x, EVALUATION_BLOCK):
        y = out[outer, :, inner]  # holds x - centre until it holds the output
        logits, _ = posterior(x[outer, :, inner], y)
        tau = torch.softmax(logits, 1, out=logits)
        y.mul_(spread(scale, tau, room))
        if _channels_last(room):
            y.transpose(1, 2).baddbmm_(tau.transpose(1, 2), offset.expand(len(tau), -1, -1))
        else:
            y.baddbmm_(offset.t().expand(len(tau), -1, -1), tau)


class MixtureTransform(torch.autograd.Function):
    """y = weight * sum_k tau_k alpha_k (x - mean_k) / sqrt(var_k + eps) + bias, with the closed-form backward pass.

    ``mean`` and ``var`` must be the moments of x under tau: the backward pass goes through them. tau, alpha and the
    counts are constants. ``x`` is in the caller's own shape.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        tau: Tensor,
        moments: Moments,
        alpha: Tensor,
        eps: float,
        reduce: Reduce,
    ) -> Tensor:
        """Both blocks of the output's affine map are folded into the K-component tables."""
        a = alpha * torch.rsqrt(moments.var + eps)
        scale, offset = a * weight, bias - moments.mean * a * weight
        y = torch.empty_like(x)
        source, target = rows(x), rows(y)
        rooms = scratch(source, source.shape[1]), scratch(source, source.shape[1])
        for outer, inner in blocks(source):
            block, part = source[outer, :, inner], tau[outer, :, inner]
            torch.addcmul(
                spread(offset, part, rooms[0]), block, spread(scale, part, rooms[1]), out=target[outer, :, inner]
            )
        ctx.save_for_backward(x, weight, tau, moments.mass, moments.mean, moments.var, alpha)
        ctx.eps, ctx.reduce = eps, reduce
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the module's docstring."""
        x, weight, tau, mass, mean, var, alpha = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            grad = grad.to(x.dtype)
            if grad.stride() != x.stride():
                grad = torch.empty_like(x).copy_(grad)
            source, upstream = rows(x), rows(grad)
            q, p = torch.zeros_like(mean), torch.zeros_like(mean)
            # about the common centre: p - mean q would lose its digits for x far from zero
            centre = (mass / mass.sum()) @ mean
            rooms = scratch(source, source.shape[1]), scratch(source, source.shape[1])
            for outer, inner in blocks(source):
                block, g, part = source[outer, :, inner], upstream[outer, :, inner], tau[outer, :, inner]
                gx = rooms[0][: block.shape[0], :, : block.shape[2]]
                torch.sub(block, centre.unsqueeze(1), out=gx).mul_(g)
                q += torch.bmm(part, g.transpose(1, 2)).sum(0)
                p += torch.bmm(part, gx.transpose(1, 2)).sum(0)
            r = torch.rsqrt(var + ctx.eps)
            a = alpha * r
            centred = p - (mean - centre) * q
            grad_weight, grad_bias = (a * centred).sum(0), q.sum(0)
            if ctx.reduce is not None:
                packed = torch.stack([q, centred])
                ctx.reduce(packed)
                q, centred = packed[0], packed[1]
            if not ctx.needs_input_grad[0]:
                return None, grad_weight, grad_bias, None, None, None, None, None
            n = mass.clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(1)
            dmean, dvar = -a * weight * q, -0.5 * alpha * r**3 * weight * centred
            constant, slope = (dmean - 2 * mean * dvar) / n, 2 * dvar / n
            dx = torch.empty_like(x)
            target = rows(dx)
            for outer, inner in blocks(source):
                block, part = source[outer, :, inner], tau[outer, :, inner]
                other = spread(constant, part, rooms[0]).addcmul_(block, spread(slope, part, rooms[1]))
                own = spread(a * weight, part, rooms[1])
                torch.addcmul(other, upstream[outer, :, inner], own, out=target[outer, :, inner])
        return dx, grad_weight, grad_bias, None, None, None, None, None
