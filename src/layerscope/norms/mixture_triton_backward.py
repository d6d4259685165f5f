"""The Triton kernels of the mixture transform's backward pass; conventions as in ``mixture_triton_forward``."""

import triton
import triton.language as tl


@triton.jit
def collect_back(
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
def finish_back(
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
def gradient(
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
