"""The Triton kernels of the mixture transform's forward pass. Launched by ``mixture_triton``, which says what they do.

In a kernel, x is [B, C, S] with strides sb, sc, ss, cut into tiles of BC channels by BM positions of one b. K
components are padded to KP, a power of two. z = x - centre. No ``from __future__ import annotations``: Triton reads
them.
"""

import triton
import triton.language as tl


@triton.jit
def prepare(
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
def collect(
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
def finish(
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
def normalize(
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
def evaluate(
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
