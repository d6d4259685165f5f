"""The mixture transform on a CPU: two passes forward, two backward, compiled or in blocks of torch operations.

In float32 the compiled kernels of ``mixture_native`` make the passes, if they can be had. Else:

Forward: (1) posteriors of a block and its weighted sums, (2) y = x * (tau A) + tau O. Backward likewise: (1) the sums
tau^T g and tau^T (g x), (2) dx. A block's temporaries (x, x^2 and K-component tables) stay in the second-level cache,
which halves the time against whole-tensor operations. Saved for backward: x (as batch norm does) and tau.

tau has one row of zeros more where K + 1 is a multiple of four: matrix products with 4 or 8 rows take a fifth to a
third less time than with 3 or 7.

With g = dL/dy * weight, r = (var + eps)^-1/2, A = alpha r, Q = tau^T g, P = tau^T (g x), posteriors constant::

    dmean = -A Q        dvar = -1/2 alpha r^3 (P - mean Q)
    dx    = g (tau A) + tau ((dmean - 2 mean dvar) / n) + 2 x (tau (dvar / n))
    dweight_c = sum_k A_kc (P - mean Q)_kc of the unscaled gradient,   dbias_c = sum_k Q_kc
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerscope.norms import mixture_native as native
from layerscope.norms.base import without_autocast
from layerscope.norms.mixture_math import Mixture, Moments, log_posterior

#: Numbers of x in one block: with its temporaries about 1.6 MB; 60,000 to 160,000 differ little.
BLOCK = 100_000
#: The same in evaluation, which keeps fewer temporaries.
EVALUATION_BLOCK = 160_000

#: Positions that one step of EM takes where there are so many, from all parts of the batch.
EM_SAMPLES = 2048
#: Distances of these positions where all samples lie behind each other: prime, so that they meet no side of an image.
STEPS = (1, 3, 5, 11, 13, 17, 19, 23, 29, 31)
#: Positions that the centre is a mean of, about.
CENTRE_SAMPLES = 2048

#: Adds a tensor over all processes, in place; None in a single process.
Reduce = Callable[[Tensor], None] | None


def rows(x: Tensor) -> Tensor:
    """[N, C], tokens [N, S, C] or maps [N, C, *] as a view [B, C, S]; memory is copied only for odd strides."""
    if x.ndim == 2:
        return x.t().unsqueeze(0)
    if x.ndim == 3:
        return x.flatten(0, 1).t().unsqueeze(0)
    if x.shape[2:].numel() == 1:
        return x.flatten(1).t().unsqueeze(0)
    if not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        return x.movedim(1, -1).flatten(0, -2).t().unsqueeze(0)
    return x.flatten(2)


def dense(x: Tensor) -> Tensor:
    """``x``, copied if :func:`rows` could not view it."""
    if x.is_contiguous() or (x.ndim > 3 and x.movedim(1, -1).is_contiguous()):
        return x
    return x.contiguous()


def unrows(y: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`rows`: [B, C, S] in the shape of ``like``."""
    if like.ndim == 2:
        return y[0].t()
    if like.ndim == 3:
        return y[0].t().view(like.shape)
    if y.shape[0] != like.shape[0]:  # as channels-last memory
        return y[0].t().reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)
    return y.reshape(like.shape)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


class Blocks:
    """How the passes cut [B, C, S] into blocks of about ``size`` numbers, and room for what they compute of one.

    Room is allocated once per pass: fresh memory for every block would cost more in page faults than the arithmetic.
    Other devices than the CPU take everything at once.
    """

    def __init__(self, x: Tensor, size: int) -> None:
        b, c, s = x.shape
        everything = x.device.type != "cpu"
        self.samples = b if everything else min(b, max(1, size // (c * s)))
        self.positions = s if everything or (b > 1 and c * s <= 2 * size) else min(s, max(1, size // c))
        self.x, self.last = x, _channels_last(x)

    def pieces(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """All blocks of some [B, any, S], side by side."""
        b, _, s = self.x.shape
        for each in _cut(tensors, self.samples, 0) if self.samples < b else (tensors,):
            yield from _cut(each, self.positions, 2) if self.positions < s else (each,)

    def room(self, channels: int) -> Tensor:
        """[B, channels, S] of the largest block, in the memory order of x."""
        if self.last:
            return self.x.new_empty(self.samples, self.positions, channels).transpose(1, 2)
        return self.x.new_empty(self.samples, channels, self.positions)


def _cut(tensors: tuple[Tensor, ...], size: int, axis: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split(size, axis) for t in tensors), strict=True)  # type: ignore[no-untyped-call]  # torch's own signature


def _fit(room: Tensor, block: Tensor) -> Tensor:
    """The part of a room that a block needs, which is all of it for every block but the last."""
    b, _, s = block.shape
    return room if room.shape[0] == b and room.shape[2] == s else room[:b, :, :s]


class Spread:
    """tau-weighted rows of tables (K, C) at every position of one block after another, in the same memory."""

    def __init__(self, blocks: Blocks, tables: list[Tensor]) -> None:
        c = tables[0].shape[1]
        n = blocks.samples
        if blocks.last:
            self.products = [(table.expand(n, -1, -1), blocks.room(c)) for table in tables]
            self.parts = tuple(room for _, room in self.products)
        else:  # side by side, as one product
            side = torch.cat(tables, 1).t().expand(n, -1, -1)
            self.products = [(side, blocks.room(len(tables) * c))]
            self.parts = torch.split(self.products[0][1], c, 1)
        self.last = blocks.last

    def __call__(self, tau: Tensor) -> tuple[Tensor, ...]:
        """One [B, C, S] for each table."""
        b = len(tau)
        for table, room in self.products:
            table = table if len(table) == b else table[:b]
            if self.last:
                torch.bmm(tau.transpose(1, 2), table, out=_fit(room, tau).transpose(1, 2))
            else:
                torch.bmm(table, tau, out=_fit(room, tau))
        return tuple(_fit(part, tau) for part in self.parts)


class Logits:
    """Log posteriors of one block after another, in the same memory."""

    def __init__(self, blocks: Blocks, k: int, centre: Tensor, table: Tensor) -> None:
        c = len(centre)
        self.k, self.centre = k, centre.unsqueeze(1)
        self.z2 = blocks.room(c)
        self.out = self.z2.new_empty(self.z2.shape[0], len(table), self.z2.shape[2])
        table = table.expand(len(self.out), -1, -1)
        self.tables = table[:, :, -1:], table[:, :, :c], table[:, :, c:-1]

    def __call__(self, block: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """[B, K, S], the log posterior over the temperature, and z^2; ``z`` receives block - centre."""
        b = len(block)
        offset, linear, square = self.tables if b == len(self.out) else (t[:b] for t in self.tables)
        torch.sub(block, self.centre, out=z)
        z2 = torch.mul(z, z, out=_fit(self.z2, block))
        logits = torch.baddbmm(offset, linear, z, out=_fit(self.out, block))
        return logits.baddbmm_(square, z2)[:, : self.k], z2


def padded_rows(k: int) -> int:
    """Rows of tau for ``k`` components; see the module's docstring."""
    return k + 1 if k % 4 == 3 else k


def near_mean(x: Tensor, samples: int, reduce: Reduce = None) -> Tensor:
    """About the mean of every channel of [B, C, S], (C,). What is squared is x minus this: it only has to be near."""
    b, _, s = x.shape
    part = x[:: max(1, b * s // samples)] if b > 1 else x[:, :, :: max(1, s // samples)]
    centre = part.mean((0, 2), dtype=torch.promote_types(x.dtype, torch.float32))
    if reduce is not None:
        packed = torch.cat([centre, centre.new_ones(1)])
        reduce(packed)
        centre = packed[:-1] / packed[-1]
    return centre


def posterior_table(mixture: Mixture, centre: Tensor, eps: float) -> Tensor:
    """The log posterior as a map of (z, z^2, 1), z = x - centre: (K, 2C + 1), and a row of zeros for the padding."""
    linear, square, offset = log_posterior(mixture, centre, eps)
    table = torch.cat([linear, square, offset.unsqueeze(1)], 1)
    k = len(table)
    return table if padded_rows(k) == k else torch.cat([table, table.new_zeros(1, table.shape[1])])


def posterior_moments(
    x: Tensor, k: int, table: Tensor, centre: Tensor, reduce: Reduce = None
) -> tuple[Tensor, Moments]:
    """Posteriors and the moments they give, in one pass over the blocks; outside of autograd.

    Args:
        x: [B, C, S].
        k: number of components.
        table: of :func:`posterior_table`, divided by the temperature.
        centre: (C,), near the mean of x: what is squared is x minus this.
        reduce: sums over processes.

    Returns:
        tau [B, K, S], in the form of blocks with the padding of :func:`padded_rows`, and its moments.
    """
    compiled = native.kernels(x, k)
    tau, sums = compiled.collect(x, table, centre) if compiled else _collect(x, k, table, centre)
    if reduce is not None:
        reduce(sums)
    mass = sums[:, -1]
    part = sums[:, :-1] / mass.clamp_min(torch.finfo(sums.dtype).tiny).unsqueeze(1)
    mean, square = torch.split(part, x.shape[1], 1)
    return tau, Moments(mass, mean + centre, torch.addcmul(square, mean, mean, value=-1).clamp_min_(0))


def _collect(x: Tensor, k: int, table: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Padded tau, and the sums (K, 2C + 1) of tau z, tau z^2 and tau."""
    b, c, s = x.shape
    blocks = Blocks(x, BLOCK)
    logits_of, room = Logits(blocks, k, centre, table), blocks.room(c)
    tau = x.new_empty(b, len(table), s)
    own = tau[:, :k]
    if len(table) > k:
        tau[:, k:].zero_()
    first, second = [], []
    for block, part, mine in blocks.pieces(x, tau, own):
        z = _fit(room, block)
        logits, z2 = logits_of(block, z)
        torch.softmax(logits, 1, out=mine)
        first.append(torch.bmm(part, z.transpose(1, 2)))
        second.append(torch.bmm(part, z2.transpose(1, 2)))
    return tau, torch.cat([_total(first), _total(second), tau.sum((0, 2)).unsqueeze(1)], 1)[:k]


def _total(parts: list[Tensor]) -> Tensor:
    """Sum over the first axis of all."""
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).sum(0)


def some_positions(x: Tensor, count: int, turn: int) -> Tensor:
    """About ``count`` positions of [B, C, S] from all parts of it; other ones at every turn. All on other devices.

    Samples that follow each other give strips from different places: one place for all would be a biased picture of
    the images, and some samples for all a biased picture of a batch that is sorted by source.
    """
    b, _, s = x.shape
    if b * s <= count or x.device.type != "cpu":
        return x
    spin = turn * 0.6180339887 % 1  # golden ratio: the turns fall evenly
    if b == 1:
        step = max(p for p in STEPS if p <= s // count)
        return x[:, :, int(spin * step) :: step]
    width = math.ceil(count / b)
    places = max(n for n in range(1, min(b, s // width) + 1) if b % n <= b // 8)  # so many samples are left out
    apart = s // places
    start, first = int(spin * (apart - width + 1)), turn % places
    skip, groups = turn % 2 * (b % places), b // places
    view = x[skip : skip + groups * places, :, : places * apart].view(groups, places, -1, places, apart)
    view = view[..., start : start + width]
    strips = torch.cat([view.diagonal(first, 1, 3), view.diagonal(first - places, 1, 3)], -1)
    return strips.movedim(-1, 1).contiguous().flatten(0, 1)


def evaluate(
    x: Tensor, out: Tensor, mixture: Mixture, temperature: float, eps: float, scale: Tensor, offset: Tensor
) -> None:
    """Write x * (tau scale) + tau offset into ``out``, posteriors recomputed block by block; outside of autograd."""
    if not x.numel():
        return
    centre = mixture.weight @ mixture.mean
    table = posterior_table(mixture, centre, eps).div_(temperature)
    compiled = native.kernels(x, len(scale))
    if compiled:
        compiled.evaluate(x, out, table, centre, scale, offset)
        return
    blocks = Blocks(x, EVALUATION_BLOCK)
    logits_of = Logits(blocks, len(scale), centre, table)
    spread = Spread(blocks, [scale, offset + centre * scale])
    for block, y in blocks.pieces(x, out):  # y holds x - centre until it holds the output
        logits, _ = logits_of(block, y)
        slope, constant = spread(torch.softmax(logits, 1, out=logits))
        torch.addcmul(constant, y, slope, out=y)


def _compiled(x: Tensor, tau: Tensor, k: int) -> native.Kernels | None:
    """The compiled kernels, if they made this tau."""
    return native.kernels(x, k) if tau.shape[1] == k and tau.is_contiguous() else None


def _collect_back(x: Tensor, grad: Tensor, tau: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of tau g and tau g z, (K, C) each."""
    around = centre.unsqueeze(1)
    blocks = Blocks(x, BLOCK)
    room = blocks.room(len(centre))
    of_g, of_gz = [], []
    for block, g, part in blocks.pieces(x, grad, tau):
        gz = torch.sub(block, around, out=_fit(room, block)).mul_(g)
        of_g.append(torch.bmm(part, g.transpose(1, 2)))
        of_gz.append(torch.bmm(part, gz.transpose(1, 2)))
    return _total(of_g), _total(of_gz)


class MixtureTransform(torch.autograd.Function):
    """y = weight * sum_k tau_k alpha_k (x - mean_k) / sqrt(var_k + eps) + bias, with the closed-form backward pass.

    ``mean`` and ``var`` must be the moments of x under tau: the backward pass goes through them. tau, alpha and the
    counts are constants. ``x`` is in the caller's own shape; ``centre`` (C,) is near its mean.
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
        centre: Tensor,
        eps: float,
        reduce: Reduce,
    ) -> Tensor:
        """Both blocks of the output's affine map are folded into the K-component tables."""
        precision = (moments.var + eps).reciprocal_()
        unscaled = precision.sqrt().mul_(alpha)
        scale = unscaled * weight
        y = torch.empty_like(x)
        source, target = rows(x), rows(y)
        offset = torch.addcmul(bias, moments.mean, scale, value=-1)
        compiled = _compiled(source, tau, len(scale))
        if compiled:
            compiled.normalize(source, target, tau, scale, offset)
        else:
            blocks = Blocks(source, BLOCK)
            spread = Spread(blocks, [scale, offset])
            for block, part, result in blocks.pieces(source, tau[:, : len(scale)], target):
                slope, constant = spread(part)
                torch.addcmul(constant, block, slope, out=result)
        ctx.save_for_backward(x, tau, moments.mass, moments.mean, precision, unscaled, scale, centre)
        ctx.reduce = reduce
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the module's docstring."""
        x, tau, mass, mean, precision, unscaled, scale, centre = ctx.saved_tensors
        with without_autocast(x):
            grad = grad.to(x.dtype)
            if grad.stride() != x.stride():
                grad = torch.empty_like(x).copy_(grad)
            source, upstream = rows(x), rows(grad)
            k = len(mean)
            compiled = _compiled(source, tau, k) if native.usable(upstream, k) else None
            # about the common centre: p - mean q would lose its digits for x far from zero
            if compiled:
                q, p, _ = torch.split(compiled.collect_back(source, upstream, centre, tau), [len(centre)] * 2 + [1], 1)
            else:
                q, p = _collect_back(source, upstream, tau, centre)
            q, p = q[:k], p[:k]
            centred = torch.addcmul(p, mean - centre, q, value=-1)
            grad_weight, grad_bias = (unscaled * centred).sum(0), q.sum(0)
            if ctx.reduce is not None:
                packed = torch.stack([q, centred])
                ctx.reduce(packed)
                q, centred = packed[0], packed[1]
            if not ctx.needs_input_grad[0]:
                return None, grad_weight, grad_bias, None, None, None, None, None, None
            # divided last: a component without mass has sums of zero, and 0 / tiny is 0
            n = mass.clamp_min(torch.finfo(x.dtype).tiny).neg_().unsqueeze(1)
            slope = (scale * precision).mul_(centred).div_(n)
            constant = torch.addcmul((scale * q).div_(n), mean, slope, value=-1)
            dx = torch.empty_like(x)
            target = rows(dx)
            if compiled:
                compiled.gradient(source, upstream, target, tau, slope, constant, scale)
                return dx, grad_weight, grad_bias, None, None, None, None, None, None
            blocks = Blocks(source, BLOCK)
            spread = Spread(blocks, [scale, constant, slope])
            for block, g, part, result in blocks.pieces(source, upstream, tau[:, :k], target):
                mine, rest, along = spread(part)
                torch.addcmul(rest.addcmul_(block, along), g, mine, out=result)
        return dx, grad_weight, grad_bias, None, None, None, None, None, None
