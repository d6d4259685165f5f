"""The mixture transform as fused Triton kernels: the same numbers as ``mixture_kernel`` with fewer passes over memory.

Forward reads x twice and writes y once, as batch norm does: (1) posteriors and weighted sums, (2) y. Backward reads x
and dL/dy twice and writes dx. Between the passes, one small kernel turns sums into the (K, C) tables that the next pass
multiplies with, and moves the running statistics; nothing waits for the host. Numbers are float32 whatever the dtype
of x; x - centre is what gets squared, so that an offset of x costs no digits. Sums go to one slab per program and are
added in a fixed order: results do not change from run to run.

Imported only where Triton is (see ``mixture_gpu``). No ``from __future__ import annotations``: Triton reads them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from layerscope.norms.mixture_math import SHARE_FLOOR, VAR_FLOOR, Mixture

#: Numbers of x in one tile.
TILE = 4096
#: Most channels in one tile; more are taken in turns.
CHANNELS = 128
#: Programs that share the tiles of a summing pass, per multiprocessor.
PROGRAMS = 4


@triton.jit
def _prepare(
    weight, mean, var, centre, table, before, T, eps, var_floor, share_floor, C,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, OWN: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """The log posterior of the floored mixture as a map of (z, z^2, 1), z = x - centre, divided by T."""
    kk = tl.arange(0, KP)
    here = kk < K
    w = tl.load(weight + kk, mask=here, other=0).to(tl.float32)
    share = tl.where(here, (w + share_floor) / tl.sum(tl.where(here, w + share_floor, 0.0)), 1.0)
    constant = tl.log(share)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        ok = c < C
        both = here[:, None] & ok[None, :]
        at = kk[:, None] * C + c[None, :]
        m = tl.load(mean + at, mask=both, other=0).to(tl.float32)
        v = tl.load(var + at, mask=both, other=1).to(tl.float32)
        middle = tl.sum(w[:, None] * m, 0)
        total = tl.sum(w[:, None] * (v + (m - middle[None, :]) * (m - middle[None, :])), 0)
        wide = tl.where(both, v + var_floor * total[None, :] + eps, 1.0)
        if OWN:
            tl.store(centre + c, middle, mask=ok)
            off = m - middle[None, :]
        else:
            off = m - tl.load(centre + c, mask=ok, other=0)[None, :]
        tl.store(table + at, off / wide / T, mask=both)
        tl.store(table + K * C + at, -0.5 / wide / T, mask=both)
        constant -= 0.5 * tl.sum(tl.where(both, off * off / wide + tl.log(wide), 0.0), 1)
        if SAVE:
            tl.store(before + K + at, m, mask=both)
            tl.store(before + K + K * C + at, v, mask=both)
    tl.store(table + 2 * K * C + kk, constant / T, mask=here)
    if SAVE:
        tl.store(before + kk, w, mask=here)


@triton.jit
def _logits(
    base, inside, s, centre, table, C, sc, ss,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """[BM, KP]: log posteriors over T of one tile of positions, -inf in the padding."""
    kk = tl.arange(0, KP)
    constant = tl.load(table + 2 * K * C + kk, mask=kk < K, other=-float("inf"))
    logits = tl.zeros([BM, KP], tl.float32) + constant[None, :]
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        ok = c < C
        at = c[:, None] * sc + s[None, :] * ss
        z = tl.load(base + at, mask=ok[:, None] & inside[None, :], other=0).to(tl.float32)
        z -= tl.load(centre + c, mask=ok, other=0)[:, None]
        for k in tl.static_range(K):
            linear = tl.load(table + k * C + c, mask=ok, other=0)
            square = tl.load(table + (K + k) * C + c, mask=ok, other=0)
            each = tl.sum(z * (linear[:, None] + z * square[:, None]), 0)
            logits += tl.where(kk[None, :] == k, each[:, None], 0.0)
    return logits


@triton.jit
def _softmax(logits):
    e = tl.exp(logits - tl.max(logits, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _add(spot, value, again):
    """Start or continue a sum in this program's slab."""
    tl.store(spot, tl.load(spot, mask=again, other=0) + value)


@triton.jit
def _add_moments(spot, z, t, C, ok, again):
    """The same for the sums of t z and t z^2, C numbers apart."""
    one = z * t[None, :]
    tl.store(spot, tl.load(spot, mask=ok & again, other=0) + tl.sum(one, 1), mask=ok)
    tl.store(spot + C, tl.load(spot + C, mask=ok & again, other=0) + tl.sum(one * z, 1), mask=ok)


@triton.jit
def _collect(
    x, centre, table, tau, partial, tiles, row_tiles, T, C, S, sb, sc, ss,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, EM: tl.constexpr,
):  # fmt: skip
    """Posteriors, and sums of (z, z^2, 1) weighted with them; with EM also with the posteriors at temperature 1."""
    pid = tl.program_id(0)
    kk = tl.arange(0, KP)
    width = 2 * C + 1
    slab = partial + pid.to(tl.int64) * ((2 if EM else 1) * K * width)
    for tile in range(pid, tiles, tl.num_programs(0)):
        b = (tile // row_tiles).to(tl.int64)
        s = (tile % row_tiles) * BM + tl.arange(0, BM)
        inside = s < S
        base = x + b * sb
        again = tile != pid  # the first tile starts the sums
        logits = _logits(base, inside, s, centre, table, C, sc, ss, K, KP, BC, BM)
        soft = _softmax(logits)
        tl.store(tau + b * K * S + kk[None, :] * S + s[:, None], soft, mask=(kk < K)[None, :] & inside[:, None])
        soft = tl.where(inside[:, None], soft, 0.0)
        hard = soft
        if EM:
            hard = tl.where(inside[:, None], _softmax(logits * T), 0.0)
        for k in tl.static_range(K):
            _add(slab + k * width + 2 * C, tl.sum(tl.where(kk[None, :] == k, soft, 0.0)), again)
            if EM:
                _add(slab + (K + k) * width + 2 * C, tl.sum(tl.where(kk[None, :] == k, hard, 0.0)), again)
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            ok = c < C
            at = c[:, None] * sc + s[None, :] * ss
            z = tl.load(base + at, mask=ok[:, None] & inside[None, :], other=0).to(tl.float32)
            z -= tl.load(centre + c, mask=ok, other=0)[:, None]
            z = tl.where(inside[None, :], z, 0.0)
            for k in tl.static_range(K):
                _add_moments(slab + k * width + c, z, tl.sum(tl.where(kk[None, :] == k, soft, 0.0), 1), C, ok, again)
                if EM:
                    t = tl.sum(tl.where(kk[None, :] == k, hard, 0.0), 1)
                    _add_moments(slab + (K + k) * width + c, z, t, C, ok, again)
        tl.debug_barrier()  # the next tile reads these sums, perhaps in other warps


@triton.jit
def _moments(sums, here, kk, c, C, TINY: tl.constexpr):
    """Mean about the centre and biased variance, [KP, BC]. Not a number stays not a number."""
    width = 2 * C + 1
    both = here[:, None] & (c < C)[None, :]
    mass = tl.load(sums + kk * width + 2 * C, mask=here, other=0)
    safe = tl.where(mass < TINY, TINY, mass)[:, None]
    first = tl.load(sums + kk[:, None] * width + c[None, :], mask=both, other=0) / safe
    second = tl.load(sums + kk[:, None] * width + C + c[None, :], mask=both, other=0) / safe
    var = second - first * first
    return first, tl.where(var < 0, 0.0, var)


@triton.jit
def _toward(weight_old, mean, var, at, both, first, batch_var, share, unbias, rate, TINY: tl.constexpr):
    """Stepwise EM: a component's mean and variance move in proportion to the mass that it got."""
    part = rate * share / tl.maximum((1 - rate) * weight_old + rate * share, TINY)
    old_m = tl.load(mean + at, mask=both, other=0).to(tl.float32)
    old_v = tl.load(var + at, mask=both, other=0).to(tl.float32)
    tl.store(mean + at, old_m + part[:, None] * (first - old_m), mask=both)
    tl.store(var + at, old_v + part[:, None] * (batch_var * unbias - old_v), mask=both)


@triton.jit
def _finish(
    sums, em_sums, centre, weight, bias, mean, var, mass, alpha, scale, offset, finite,
    mixture_w, mixture_m, mixture_v, running_w, running_m, running_v, tracked, momentum, eps, share_floor, C,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr,
    AFFINE: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Sums -> moments, the tables of the second pass, and the new running moments and mixture if all is finite."""
    kk = tl.arange(0, KP)
    here = kk < K
    n = tl.load(sums + kk * (2 * C + 1) + 2 * C, mask=here, other=0)
    total = tl.sum(n)
    share = n / total
    a = tl.where(share < share_floor, share_floor, share)
    a = tl.where(here, 1 / tl.sqrt_rn(a * K if UNIT else a), 0.0)
    tl.store(mass + kk, n, mask=here)
    tl.store(alpha + kk, a, mask=here)
    check = total
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        ok = c < C
        both = here[:, None] & ok[None, :]
        at = kk[:, None] * C + c[None, :]
        first, v = _moments(sums, here, kk, c, C, TINY)
        check += tl.sum(tl.where(both, v, 0.0))
        shift = tl.load(centre + c, mask=ok, other=0)
        tl.store(mean + at, first + shift[None, :], mask=both)
        tl.store(var + at, v, mask=both)
        g = a[:, None] / tl.sqrt_rn(v + eps)
        if AFFINE:
            g *= tl.load(weight + c, mask=ok, other=0).to(tl.float32)[None, :]
            shifted = tl.load(bias + c, mask=ok, other=0).to(tl.float32)[None, :] - first * g
        else:
            shifted = -first * g
        tl.store(scale + at, g, mask=both)
        tl.store(offset + at, shifted, mask=both)
    good = tl.abs(check) < float("inf")  # false for not a number
    tl.store(finite, good.to(tl.int32))
    if UPDATE:  # noqa: SIM102 - known when the kernel is compiled; the next one is not
        if good:
            count = tl.load(tracked) + 1
            rate = tl.maximum(1.0 / count.to(tl.float32), momentum)
            unbias = total / tl.maximum(total - 1, 1.0)
            old_running = tl.load(running_w + kk, mask=here, other=0).to(tl.float32)
            old_mixture = tl.load(mixture_w + kk, mask=here, other=0).to(tl.float32)
            em_n = tl.load(em_sums + kk * (2 * C + 1) + 2 * C, mask=here, other=0)
            em_share = em_n / tl.sum(em_n)
            for c0 in range(0, C, BC):
                c = c0 + tl.arange(0, BC)
                ok = c < C
                both = here[:, None] & ok[None, :]
                at = kk[:, None] * C + c[None, :]
                shift = tl.load(centre + c, mask=ok, other=0)[None, :]
                first, v = _moments(sums, here, kk, c, C, TINY)
                _toward(old_running, running_m, running_v, at, both, first + shift, v, share, unbias, rate, TINY)
                first, v = _moments(em_sums, here, kk, c, C, TINY)
                _toward(old_mixture, mixture_m, mixture_v, at, both, first + shift, v, em_share, unbias, rate, TINY)
            tl.debug_barrier()  # every warp has read the old shares
            tl.store(running_w + kk, old_running + rate * (share - old_running), mask=here)
            tl.store(mixture_w + kk, old_mixture + rate * (em_share - old_mixture), mask=here)
            tl.store(tracked, count)


@triton.jit
def _normalize(
    x, y, tau, centre, scale, offset, row_tiles, C, S, sb, sc, ss, K: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr
):
    """Y = (x - centre) * (tau scale) + tau offset."""
    tile = tl.program_id(0)
    b = (tile // row_tiles).to(tl.int64)
    s = (tile % row_tiles) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside, ok = s < S, c < C
    both = ok[:, None] & inside[None, :]
    at = b * sb + c[:, None] * sc + s[None, :] * ss
    z = tl.load(x + at, mask=both, other=0).to(tl.float32) - tl.load(centre + c, mask=ok, other=0)[:, None]
    slope = tl.zeros([BC, BM], tl.float32)
    constant = tl.zeros([BC, BM], tl.float32)
    for k in tl.static_range(K):
        t = tl.load(tau + b * K * S + k * S + s, mask=inside, other=0)[None, :]
        slope += t * tl.load(scale + k * C + c, mask=ok, other=0)[:, None]
        constant += t * tl.load(offset + k * C + c, mask=ok, other=0)[:, None]
    tl.store(y + at, z * slope + constant, mask=both)


@triton.jit
def _evaluate(
    x, y, centre, table, scale, offset, row_tiles, C, S, sb, sc, ss,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Posteriors and y in one pass, with given tables."""
    tile = tl.program_id(0)
    b = (tile // row_tiles).to(tl.int64)
    s = (tile % row_tiles) * BM + tl.arange(0, BM)
    inside = s < S
    kk = tl.arange(0, KP)
    tau = _softmax(_logits(x + b * sb, inside, s, centre, table, C, sc, ss, K, KP, BC, BM))
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        ok = c < C
        both = ok[:, None] & inside[None, :]
        at = b * sb + c[:, None] * sc + s[None, :] * ss
        z = tl.load(x + at, mask=both, other=0).to(tl.float32) - tl.load(centre + c, mask=ok, other=0)[:, None]
        slope = tl.zeros([BC, BM], tl.float32)
        constant = tl.zeros([BC, BM], tl.float32)
        for k in tl.static_range(K):
            t = tl.sum(tl.where(kk[None, :] == k, tau, 0.0), 1)[None, :]
            slope += t * tl.load(scale + k * C + c, mask=ok, other=0)[:, None]
            constant += t * tl.load(offset + k * C + c, mask=ok, other=0)[:, None]
        tl.store(y + at, z * slope + constant, mask=both)


@triton.jit
def _collect_back(
    x, g, tau, centre, partial, tiles, row_tiles, C, S, sb, sc, ss,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Q = tau^T g and P = tau^T (g z)."""
    pid = tl.program_id(0)
    kk = tl.arange(0, KP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = c < C
    shift = tl.load(centre + c, mask=ok, other=0)[:, None]
    q = tl.zeros([BC, KP], tl.float32)
    p = tl.zeros([BC, KP], tl.float32)
    for tile in range(pid, tiles, tl.num_programs(0)):
        b = (tile // row_tiles).to(tl.int64)
        s = (tile % row_tiles) * BM + tl.arange(0, BM)
        inside = s < S
        both = ok[:, None] & inside[None, :]
        at = b * sb + c[:, None] * sc + s[None, :] * ss
        up = tl.load(g + at, mask=both, other=0).to(tl.float32)
        z = tl.load(x + at, mask=both, other=0).to(tl.float32) - shift
        for k in tl.static_range(K):
            one = up * tl.load(tau + b * K * S + k * S + s, mask=inside, other=0)[None, :]
            q += tl.where(kk[None, :] == k, tl.sum(one, 1)[:, None], 0.0)
            p += tl.where(kk[None, :] == k, tl.sum(one * z, 1)[:, None], 0.0)
    both = ok[:, None] & (kk < K)[None, :]
    at = pid.to(tl.int64) * 2 * K * C + kk[None, :] * C + c[:, None]
    tl.store(partial + at, q, mask=both)
    tl.store(partial + K * C + at, p, mask=both)


@triton.jit
def _finish_back(
    local, total, mean, var, mass, alpha, centre, weight, grad_weight, grad_bias, own, constant, slope, eps, C,
    K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, AFFINE: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Q and P -> gradients of weight and bias (of this process), and the tables of dx."""
    kk = tl.arange(0, KP)
    here = kk < K
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    ok = c < C
    both = here[:, None] & ok[None, :]
    at = kk[:, None] * C + c[None, :]
    first = tl.load(mean + at, mask=both, other=0) - tl.load(centre + c, mask=ok, other=0)[None, :]
    r = 1 / tl.sqrt_rn(tl.load(var + at, mask=both, other=1) + eps)
    a = tl.load(alpha + kk, mask=here, other=0)[:, None]
    n = tl.load(mass + kk, mask=here, other=1)
    n = tl.where(n < TINY, TINY, n)[:, None]
    w = tl.full([BC], 1.0, tl.float32)
    if AFFINE:
        q = tl.load(local + at, mask=both, other=0)
        centred = tl.load(local + K * C + at, mask=both, other=0) - first * q
        tl.store(grad_weight + c, tl.sum(a * r * centred, 0), mask=ok)
        tl.store(grad_bias + c, tl.sum(q, 0), mask=ok)
        w = tl.load(weight + c, mask=ok, other=0).to(tl.float32)
    q = tl.load(total + at, mask=both, other=0)
    centred = tl.load(total + K * C + at, mask=both, other=0) - first * q
    dmean = -a * r * w[None, :] * q
    dvar = -0.5 * a * r * r * r * w[None, :] * centred
    tl.store(own + at, a * r * w[None, :], mask=both)
    tl.store(constant + at, (dmean - 2 * first * dvar) / n, mask=both)
    tl.store(slope + at, 2 * dvar / n, mask=both)


@triton.jit
def _gradient(
    x, g, dx, tau, centre, own, constant, slope, row_tiles, C, S, sb, sc, ss,
    K: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Dx = g (tau own) + tau constant + (x - centre) (tau slope)."""
    tile = tl.program_id(0)
    b = (tile // row_tiles).to(tl.int64)
    s = (tile % row_tiles) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside, ok = s < S, c < C
    both = ok[:, None] & inside[None, :]
    at = b * sb + c[:, None] * sc + s[None, :] * ss
    up = tl.load(g + at, mask=both, other=0).to(tl.float32)
    z = tl.load(x + at, mask=both, other=0).to(tl.float32) - tl.load(centre + c, mask=ok, other=0)[:, None]
    out = tl.zeros([BC, BM], tl.float32)
    for k in tl.static_range(K):
        t = tl.load(tau + b * K * S + k * S + s, mask=inside, other=0)[None, :]
        mine = up * tl.load(own + k * C + c, mask=ok, other=0)[:, None]
        mine += tl.load(constant + k * C + c, mask=ok, other=0)[:, None]
        mine += z * tl.load(slope + k * C + c, mask=ok, other=0)[:, None]
        out += t * mine
    tl.store(dx + at, out, mask=both)


class Plan:
    """How a [B, C, S] view is cut into tiles: BC channels by BM positions of one b."""

    def __init__(self, x: Tensor, k: int) -> None:
        b, self.C, self.S = x.shape
        self.strides = x.stride()
        self.K, self.KP = k, triton.next_power_of_2(k)
        self.BC = min(CHANNELS, max(16, triton.next_power_of_2(self.C)))
        self.BM = min(128, max(16, TILE // self.BC), max(16, triton.next_power_of_2(self.S)))
        self.row_tiles = triton.cdiv(self.S, self.BM)
        self.tiles = b * self.row_tiles
        self.chunks = triton.cdiv(self.C, self.BC)
        self.programs = min(self.tiles, PROGRAMS * _multiprocessors(x.device))
        #: channels a program takes at once where it holds all components
        self.wide = {"K": k, "KP": self.KP, "BC": min(1024, triton.next_power_of_2(self.C))}

    @property
    def geometry(self) -> tuple[int, ...]:
        """Row tiles, channels, positions, and strides."""
        return (self.row_tiles, self.C, self.S, *self.strides)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


TINY = float(torch.finfo(torch.float32).tiny)


def prepare(
    mixture: Mixture, plan: Plan, centre: Tensor | None, temperature: float, eps: float, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The table of log posteriors (2 K C + K numbers) and the centre, (C,): the mixture's own unless given.

    ``before``, K + 2 K C numbers, receives a copy of the mixture.
    """
    own = centre is None
    like = mixture.mean
    centre = torch.empty(plan.C, device=like.device) if centre is None else centre
    table = torch.empty(2 * plan.K * plan.C + plan.K, device=like.device)
    _prepare[(1,)](
        *mixture, centre, table, table if before is None else before,
        temperature, eps, VAR_FLOOR, SHARE_FLOOR, plan.C, **plan.wide, OWN=own, SAVE=before is not None,
    )  # fmt: skip
    return table, centre


def collect(
    x: Tensor, plan: Plan, centre: Tensor, table: Tensor, temperature: float, em: bool
) -> tuple[Tensor, Tensor]:
    """Posteriors [B, K, S] and sums [1 or 2, K, 2C + 1] over z, z^2 and 1."""
    tau = torch.empty(x.shape[0], plan.K, plan.S, device=x.device)
    partial = torch.empty(plan.programs, 2 if em else 1, plan.K, 2 * plan.C + 1, device=x.device)
    _collect[(plan.programs,)](
        x, centre, table, tau, partial, plan.tiles, plan.row_tiles, temperature, *plan.geometry[1:],
        K=plan.K, KP=plan.KP, BC=plan.BC, BM=plan.BM, EM=em,
    )  # fmt: skip
    return tau, partial.sum(0)


def finish(
    sums: Tensor,
    plan: Plan,
    centre: Tensor,
    affine: tuple[Tensor, Tensor] | None,
    eps: float,
    unit: bool,
    track: tuple[Mixture, Mixture, Tensor, float] | None,
) -> tuple[Tensor, ...]:
    """Mean, variance, scale and offset, each [K, C], mass and alpha, (K,), and whether all is finite, int32 (1,).

    ``track`` is (mixture, running moments, count of batches, momentum): moved in place if all is finite.
    """
    like = sums.new_empty
    mean, var, scale, offset = like(4, plan.K, plan.C)
    mass, alpha = like(2, plan.K)
    finite = torch.empty(1, dtype=torch.int32, device=sums.device)
    weight, bias = (centre, centre) if affine is None else affine
    if track is None:  # any pointers will do
        unused = Mixture(centre, centre, centre)
        track = (unused, unused, finite, 0.0)
        update = False
    else:
        update = True
    mixture, running, tracked, momentum = track
    _finish[(1,)](
        sums[0], sums[-1], centre, weight, bias, mean, var, mass, alpha, scale, offset, finite,
        *mixture, *running, tracked, float(momentum), eps, SHARE_FLOOR if plan.K > 1 else 0.0, plan.C,
        **plan.wide, AFFINE=affine is not None, UNIT=unit, UPDATE=update, TINY=TINY,
    )  # fmt: skip
    return mean, var, scale, offset, mass, alpha, finite


def normalize(x: Tensor, y: Tensor, plan: Plan, tau: Tensor, centre: Tensor, scale: Tensor, offset: Tensor) -> None:
    """Y = (x - centre) * (tau scale) + tau offset, written into ``y`` of the same strides."""
    _normalize[(plan.tiles, plan.chunks)](
        x, y, tau, centre, scale, offset, *plan.geometry, K=plan.K, BC=plan.BC, BM=plan.BM
    )


def evaluate(x: Tensor, y: Tensor, plan: Plan, centre: Tensor, table: Tensor, scale: Tensor, offset: Tensor) -> None:
    """The same with posteriors from ``table``, in one pass."""
    _evaluate[(plan.tiles,)](
        x, y, centre, table, scale, offset, *plan.geometry, K=plan.K, KP=plan.KP, BC=plan.BC, BM=plan.BM
    )


def collect_back(x: Tensor, g: Tensor, plan: Plan, tau: Tensor, centre: Tensor) -> Tensor:
    """Q and P, [2, K, C]."""
    partial = torch.empty(plan.programs, 2, plan.K, plan.C, device=x.device)
    _collect_back[(plan.programs, plan.chunks)](
        x, g, tau, centre, partial, plan.tiles, *plan.geometry, K=plan.K, KP=plan.KP, BC=plan.BC, BM=plan.BM
    )
    return partial.sum(0)


def finish_back(
    local: Tensor, total: Tensor, plan: Plan, saved: tuple[Tensor, ...], weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight and bias, (C,), and the tables own, constant and slope of dx, [K, C]."""
    mean, var, mass, alpha, centre = saved
    own, constant, slope = local.new_empty(3, plan.K, plan.C)
    grads = local.new_empty(2, plan.C)
    _finish_back[(plan.chunks,)](
        local, total, mean, var, mass, alpha, centre, centre if weight is None else weight, grads[0], grads[1],
        own, constant, slope, eps, plan.C, K=plan.K, KP=plan.KP, BC=plan.BC, AFFINE=weight is not None, TINY=TINY,
    )  # fmt: skip
    return grads[0], grads[1], own, constant, slope


def gradient(
    x: Tensor, g: Tensor, dx: Tensor, plan: Plan, tau: Tensor, centre: Tensor, tables: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write dL/dx into ``dx``; x, g and dx share their strides."""
    _gradient[(plan.tiles, plan.chunks)](
        x, g, dx, tau, centre, *tables, *plan.geometry, K=plan.K, BC=plan.BC, BM=plan.BM
    )
