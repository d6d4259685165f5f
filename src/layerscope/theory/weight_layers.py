"""ReLU layers that are normalized through their weights, or not at all: closed recursions, no sampling.

Weights act on all samples alike, so nothing fluctuates and the state is exact: second moment q and mean m of the
features (over channels), cosines a (two positions of one sample), b (two samples at one position) and d (at two).
With weight variance v / fan-in, centring of the filters c in {0, 1}, and feature map h = s (phi(u) - o):

    t  = v (lambda (q - c m^2) + c l m^2)                    second moment of the pre-activation u
    t r = v (lambda (q b - c m^2) + c l m^2)                 its covariance across samples; with a and d, lambda' and l'
    q' = s^2 (t/2 - 2 o sqrt(t / 2 pi) + o^2),   q' b' = s^2 (t/2 kappa(r) - 2 o sqrt(t / 2 pi) + o^2)
    squared gradient: factor v lambda s^2 / 2 per layer

lambda and l are what zero padding keeps and leaks, lambda' and l' the same between different positions
(:mod:`layerscope.theory.padding`); 1 and 0 without it.

======================= ======= === ========================================================================
no norm                 v = 2   c=0 s = 1, o = 0: q is kept (lambda aside), b -> kappa(b)
Weight Normalization    v = 1   c=0 s = 1.7129, o = 1/sqrt(2 pi) (scaled ReLU): mean 0, variance 1 at t = 1
Scaled Weight Std.      v = s^2 c=1 plain ReLU: the centred filter sees only the variance, which the gain restores
weight centring         v = 2   c=1 plain ReLU: loses the factor (pi - 1)/pi = 0.682 per layer
======================= ======= === ========================================================================

Assumptions: infinite width, He-scaled or normalized filters, gains 1, biases 0. Stated error at width >= 128: cosine
0.03, rate 0.015.

Source: Cho & Saul 2009 for kappa; Arpit et al. 2016, arXiv 1603.01431 (scaled ReLU); Brock et al. 2021, arXiv
2101.08692 (scaled weight standardization); the joint recursion with padding is derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.kernels import RELU_GAIN, kappa

Floats = NDArray[np.float64]

#: E phi(z) of a standard Gaussian: what the scaled ReLU of Weight Normalization subtracts.
RELU_MEAN = 1.0 / math.sqrt(2.0 * math.pi)


@dataclass(frozen=True)
class WeightLaw:
    """The four numbers by which such layers differ."""

    variance: float
    """v: weight variance times fan-in."""
    centred: bool = False
    scale: float = 1.0
    """s of the activation s (phi(u) - o)."""
    offset: float = 0.0


NO_NORM = WeightLaw(2.0)
WEIGHT_NORM = WeightLaw(1.0, scale=RELU_GAIN, offset=RELU_MEAN)
SCALED_WEIGHT_STANDARDIZATION = WeightLaw(RELU_GAIN**2, centred=True)
WEIGHT_CENTRING = WeightLaw(2.0, centred=True)


@dataclass(frozen=True)
class Features:
    """State after a layer, entries [K, 1]."""

    q: Floats
    m: Floats
    a: Floats
    b: Floats
    d: Floats
    t: Floats
    """Second moment of the pre-activation they came from."""


def weight_layer(
    law: WeightLaw, before: Features, kept: Floats, fade: Floats, leaked: Floats, leaked_apart: Floats
) -> tuple[Features, Floats]:
    """One layer: the state after it, and its factor on the squared gradient.

    Args:
        law: which layer.
        before: state of its input.
        kept: lambda, shape [K, 1].
        fade: lambda' / lambda.
        leaked: l.
        leaked_apart: l'.
    """
    mean2 = before.m**2 if law.centred else np.zeros_like(before.m)

    def covariance(cosine: Floats | float, share: Floats, leak: Floats) -> Floats:
        return np.asarray(law.variance * (share * (before.q * cosine - mean2) + leak * mean2))

    t = np.maximum(covariance(1.0, kept, leaked), 1e-300)
    correlations = (
        covariance(before.a, kept * fade, leaked_apart) / t,
        covariance(before.b, kept, leaked) / t,
        covariance(before.d, kept * fade, leaked_apart) / t,
    )
    mean = np.sqrt(t) * RELU_MEAN
    shift = law.offset**2 - 2.0 * law.offset * mean
    scale2 = law.scale**2
    q = np.maximum(scale2 * (t / 2.0 + shift), 1e-300)
    a, b, d = (np.clip(scale2 * (t / 2.0 * kappa(r) + shift) / q, -1.0, 1.0) for r in correlations)
    return Features(q, law.scale * (mean - law.offset), a, b, d, t), law.variance * kept * scale2 / 2.0
