"""The closed forms: what one ReLU layer does to the correlation of two signals, with and without centring.

Everything here is for infinitely wide layers with independent zero-mean weights, whose pre-activations are
Gaussian: a pair of signals is then described by one correlation r, and a layer is a map r -> r'.
Correlations are numbers in [-1, 1]; every function takes floats or numpy arrays and broadcasts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Cosine of ReLU features whose pre-activations are uncorrelated: the fixed point of full centring.
CENTRED_COSINE = 1.0 / math.pi

#: Growth of the squared gradient per layer under full centring, pi / (pi - 1); its root is 1.2112.
CENTRED_GAIN = math.pi / (math.pi - 1.0)

#: Gain that gives a ReLU of a standard Gaussian unit variance, sqrt(2 pi / (pi - 1)) = 1.7129.
RELU_GAIN = math.sqrt(2.0 * math.pi / (math.pi - 1.0))


def kappa(r: ArrayLike) -> Floats:
    """Cosine of two ReLU features whose Gaussian pre-activations have correlation ``r``.

    kappa(r) = (sqrt(1 - r^2) + r (pi - arccos r)) / pi = E[phi(u) phi(v)] / E[phi(u)^2].

    kappa(-1) = 0, kappa(0) = 1/pi, kappa(1) = 1, kappa'(0) = 1/2, kappa'(1) = 1. Exact.

    Source: Cho & Saul 2009, the degree-1 arc-cosine kernel, normalized.
    """
    r = np.clip(np.asarray(r, dtype=np.float64), -1.0, 1.0)
    return np.asarray((np.sqrt(1.0 - r * r) + r * (math.pi - np.arccos(r))) / math.pi)


def kappa_slope(r: ArrayLike) -> Floats:
    """Derivative of :func:`kappa`: 1 - arccos(r) / pi, the probability that both ReLUs are open over 1/2."""
    return np.asarray(1.0 - np.arccos(np.clip(np.asarray(r, dtype=np.float64), -1.0, 1.0)) / math.pi)


def cosine_by_depth(depth: int, input_cosine: float = 0.0) -> tuple[float, ...]:
    """Cosine between samples after 1, 2, ..., ``depth`` ReLU layers without centring.

    c_{l+1} = kappa(c_l). LayerNorm over the whole layer, RMSNorm and no norm at all share this map: dividing a
    sample by its own norm changes no angle, and subtracting the mean over many channels subtracts nearly zero,
    because pre-activations of random weights have zero mean over channels. Near 1 it reads
    d' = d - (2 sqrt(2) / (3 pi)) d^(3/2) for d = 1 - c, hence the collapse is polynomial: d -> 9 pi^2 / (2 l^2).

    Assumptions: infinite width. Error at width >= 1024: below 0.02 to depth 20 (tested).

    Source: Cho & Saul 2009; Daniely, Frostig & Singer 2016, arXiv 1602.05897.

    >>> [round(c, 3) for c in cosine_by_depth(3)]
    [0.318, 0.494, 0.605]
    """
    cosines, c = [], float(input_cosine)
    for _ in range(depth):
        c = float(kappa(c))
        cosines.append(c)
    return tuple(cosines)


def collapse_law(layer: ArrayLike) -> Floats:
    """The asymptote of 1 - cosine without centring: 9 pi^2 / (2 l^2) = 44.4 / l^2.

    Only asymptotic: (1 - c) l^2 of the iterates is 11, 19, 27, 33 at l = 10, 20, 40, 80.
    """
    return np.asarray(9.0 * math.pi**2 / (2.0 * np.asarray(layer, dtype=np.float64) ** 2))


def centred_map(r: ArrayLike) -> Floats:
    """One ReLU layer whose features are centred over a large statistic set: r' = (kappa(r) - 1/pi) / (1 - 1/pi).

    BatchNorm centres over samples, Instance Norm over positions, Scaled Weight Standardization and centred Weight
    Normalization over the fan-in: in each case what uncorrelated features have in common, 1/pi, is removed.
    0 is a stable fixed point (slope (pi/2)/(pi-1) = 0.734) and 1 an unstable one (slope pi/(pi-1) = 1.467), so
    the cosine of the ReLU features goes to kappa(0) = 1/pi whatever the data.

    Source: derived here from kappa; the same fixed point as Yang et al. 2019, arXiv 1902.08129.
    """
    return np.asarray((kappa(r) - CENTRED_COSINE) / (1.0 - CENTRED_COSINE))


def finite_set_rate(elements: ArrayLike) -> Floats:
    """Growth of the gradient norm per layer, toward the input, under a fully centring norm with finite sets.

    rate = sqrt( pi/(pi-1) * (m-2)/(m-3) ),  m = number of elements in one statistic set (B S for BatchNorm,
    S for Instance Norm). Per layer the squared gradient is multiplied by 2 (He weights) * 1/2 (open ReLUs) *
    E[1/sigma^2] * (m-2)/m (the Jacobian projects out two directions), and sigma^2 is (1 - 1/pi) chi^2_{m-1}/m,
    whose inverse has mean m/(m-3) / (1 - 1/pi).

    Assumptions: m exchangeable Gaussian elements. Error below 2.5 % for m >= 4 against MLPs of width 256.

    Returns:
        The rate; ``inf`` at m <= 3, where the mean of 1/sigma^2 does not exist.

    Source: the limit is Yang et al. 2019, arXiv 1902.08129; the finite-set factor is derived here.
    """
    m = np.asarray(elements, dtype=np.float64)
    safe = np.maximum(m, 3.5)
    return np.asarray(np.where(m > 3.0, np.sqrt(CENTRED_GAIN * (safe - 2.0) / (safe - 3.0)), np.inf))


def group_map(r: ArrayLike, group_size: ArrayLike) -> Floats:
    """Closed approximation of GroupNorm's effect on a correlation of pre-activations: r (1 - 1/g) / (1 - r/g).

    Of the shared component of weight r, the group mean takes the share 1/g, and dividing by the group's standard
    deviation, 1 - r/g, restores unit second moment. Exact at g = 1 (everything shared is removed) and g = inf;
    in between it ignores that the group's variance fluctuates, which biases the cosine upward by up to 0.16
    (g = 4 to 8). :mod:`layerscope.theory.sets` has the recursion without that bias.
    """
    r, g = np.asarray(r, dtype=np.float64), np.asarray(group_size, dtype=np.float64)
    one = np.minimum(r / g, 1.0 - 1e-12)
    return np.asarray((r - one) / (1.0 - one))


def group_cosine_and_rate(depth: int, group_size: float) -> tuple[float, float]:
    """Cosine after ``depth`` GroupNorm-ReLU layers and gradient rate, by the closed approximation.

    a' = kappa(group_map(a, g)), squared gain per layer 1 / (1 - a/g). Stated error: see :func:`group_map`;
    the rate is low by up to 0.06. Use it as a quick bound; :func:`layerscope.theory.predict` does not need it.

    >>> tuple(round(v, 3) for v in group_cosine_and_rate(20, 1))
    (0.318, 1.199)
    """
    cosine, log_gain = 0.0, 0.0
    for layer in range(depth):
        if layer < max(depth - 1, 1):
            log_gain -= math.log1p(-cosine / group_size)
        cosine = float(kappa(group_map(cosine, group_size)))
    return cosine, math.exp(0.5 * log_gain / max(depth - 1, 1))


def normal_density(z: ArrayLike) -> Floats:
    """Density of the standard normal."""
    z = np.asarray(z, dtype=np.float64)
    return np.asarray(np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi))


def normal_cdf(z: ArrayLike) -> Floats:
    """Distribution function of the standard normal, to 1e-7 (numpy has no error function).

    Source: Hastings 1955, the rational approximation listed as 26.2.17 in Abramowitz & Stegun.
    """
    z = np.asarray(z, dtype=np.float64)
    t = 1.0 / (1.0 + 0.2316419 * np.abs(z))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = normal_density(z) * poly
    return np.asarray(np.where(z >= 0.0, 1.0 - tail, tail))
