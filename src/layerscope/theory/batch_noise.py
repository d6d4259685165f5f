"""How much of a sample's representation is decided by its batch companions: the batch-noise ratio nu, from the sizes.

nu = E_x Var_batch z(x) / Var_x E_batch z(x), with z(x) the pooled features of an anchor x at the last layer and the
variance over random companions. Follow one anchor through two batches that share nothing else. Besides a and b (two
positions of a sample, two samples of a batch) the state is the correlation of the anchor's pre-activations between
the two batches, at the same position (r_s) and at two positions (r_d), of the anchor with the other batch's companions,
c, and of companions with companions, k. With v = a + (1-a)/S and r_m = r_d + (r_s - r_d)/S those of a sample's
mean over positions, and e = r_m - 2c + k, centring over a batch of B leaves the covariances

    same position         (v - b)(1 - 1/B) + (1 - a)(1 - 1/S)  = V
    two positions         (v - b)(1 - 1/B) - (1 - a)/S
    two samples           -(v - b)/B
    anchor, both batches  e (1 - 1/B)^2 + (r_s - r_d)(1 - 1/S)     two positions: ... - (r_s - r_d)/S
    anchor, companion     -e (1 - 1/B)/B                           companion, companion: e / B^2

(what all samples of a batch share cancels), and the ReLU makes of each a cosine kappa(. / V). Across batches the
divisors differ too, which multiplies r_s, r_d, c and k by s = E[1/sigma]^2 / E[1/sigma^2] = 1 / (1 + Var(sigma^2) / (4
E[sigma^2]^2)). Samples of batches that share nothing have cosine o = s kappa(0). Pooled over S positions, with
Q = a + (1-a)/S and R = r_d + (r_s - r_d)/S:   nu = (Q - R) / (R - o).

The anchor's correlation 1 across batches is unstable under the centred map (slope pi/(pi-1) > 1), so the noise that
every layer injects, about 1/B, grows geometrically with depth.

Variance Normalization does not centre: only the divisors differ. Per-sample norms and norms of weights have nu = 0.

Assumptions: those of the correlation recursion; fluctuations of sigma to first order in 1/(B S). Stated error: 35 %
of nu where nu < 1; above, nu grows so fast with depth that only its being large is a statement. Images differ more
from each other than independent noise does, and have smaller nu in deep nets.

Source: derived here, tested against random networks with drawn companions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerscope.theory.kernels import kappa


def batch_noise(
    batch: int, positions: Sequence[int], *, centred: bool = True, input_cosine: float = 0.0
) -> tuple[float, ...]:
    """Nu of the pooled features after every layer of a plain ReLU stack.

    Args:
        batch: samples whose statistics are shared, at least 2.
        positions: S after each layer.
        centred: BatchNorm; False for Variance Normalization.
        input_cosine: cosine between input samples, in [0, 1).

    Returns:
        One number for each layer; ``inf`` once nothing of the sample is left.

    >>> [round(nu, 2) for nu in batch_noise(8, [1] * 3)]
    [0.32, 0.57, 0.93]
    """
    a = b = c = k = other = float(input_cosine)
    same, apart = 1.0, float(input_cosine)
    found = []
    for s in positions:
        mean = a + (1.0 - a) / s
        shared = apart + (same - apart) / s
        own, inner = max(mean - b, 0.0), (1.0 - a) if s > 1 else 0.0
        jump = max(same - apart, 0.0) if s > 1 else 0.0
        if centred:
            kept = 1.0 - 1.0 / batch
            level = own * kept - inner / s
            total = level + inner
            both = shared - 2.0 * c + k
            across = both * kept * kept - jump / s
            covariances = (level, -own / batch, across + jump, across, -both * kept / batch, both / batch**2, 0.0)
        else:
            total = 1.0
            covariances = (a, b, shared - jump / s + jump, shared - jump / s, c, k, other)
        decay = _decay(own, inner, batch, s)
        cosines = [float(kappa(value / max(total, 1e-12))) for value in covariances]
        a, b = cosines[:2]
        same, apart, c, k, other = (decay * value for value in cosines[2:])
        pooled, kept_part = a + (1.0 - a) / s, apart + (same - apart) / s
        signal = kept_part - other
        found.append(max(pooled - kept_part, 0.0) / signal if signal > 1e-9 else math.inf)
    return tuple(found)


def _decay(own: float, inner: float, batch: int, positions: int) -> float:
    """s: how much independent divisors of two batches lower a product, from the variance of sigma^2."""
    mean = own * (batch - 1) / batch + inner * (positions - 1) / positions
    spread = own * own * (batch - 1) / batch**2 + inner * inner * (positions - 1) / (batch * positions**2)
    return 1.0 / (1.0 + 2.0 * spread / max(mean * mean, 1e-24) / 4.0)
