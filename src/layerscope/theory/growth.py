"""How the second moment of activations grows with depth: plain stacks and residual streams.

With q_l the second moment of the residual stream after block l, a branch of two conv layers (He weights, gains 1), its
output independent of the stream and of mean zero:

* pre-activation, no norm: the branch keeps its input's second moment, so q_{l+1} = 2 q_l: exponential.
* pre-activation, a norm that gives unit second moment: the branch adds 1 whatever q_l is, so q_{l+1} = q_l + 1: linear.
  Variance Normalization does not centre, its branch carries 1 / (1 - b), with b the cosine between samples.
* post-activation, y = phi(x + z) with stream x >= 0 and branch z: a norm makes z of unit second moment, and the
  increment E phi(x + z)^2 - E x^2 tends to 1 from below; without one it is geometric (2.40).
* SkipInit / ReZero (the branch starts at 0): y = phi(x) = x. Exactly constant, unless the activation changes a stream
  that it has already passed: the scaled ReLU of Weight Normalization multiplies it by up to s^2 = 2 pi / (pi - 1) =
  2.934.
* Weight Normalization and Scaled Weight Standardization keep the second moment of *their own* input, as no norm does:
  exponential on an identity skip path.
* zero padding: an un-normalized branch keeps only lambda per convolution (:mod:`layerscope.theory.padding`).
* normalizer-free remedy: x + alpha f(x / beta_l) with beta_l^2 the predicted second moment: q_{l+1} = q_l + alpha^2.

Source: De & Smith 2020, arXiv 2002.10444; Brock et al. 2021, arXiv 2101.08692; Lubana, Dick & Tanaka 2021, arXiv
2106.05956 (which norms are stable in residual nets). The finite-padding and post-activation forms are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layerscope.theory.kernels import RELU_GAIN
from layerscope.theory.laws import Law
from layerscope.theory.padding import perron_factor
from layerscope.theory.recursion import Path

Kind = Literal["constant", "linear", "exponential", "vanishing"]

#: Growth per block of an un-normalized post-activation stream: where E phi(x + z)^2 / E x^2 settles, block after block,
#: for Gaussian z of twice the second moment of x (a He convolution doubles that of a rectified signal).
POST_FACTOR = 2.40


@dataclass(frozen=True)
class Growth:
    """Kind of growth, its factor (or increment, where linear) and the relative error of that."""

    kind: Kind | None
    factor: float | None
    error: float


def growth_law(law: Law, topology: str, path: Path | None, positions: Sequence[int], padded: bool) -> Growth | None:
    """Growth of a configuration; None where it is not known.

    Args:
        law: the norm's law.
        topology: ``plain``, ``post``, ``pre``, ``post-skipinit`` or ``pre-skipinit``.
        path: the recursion of the stack; only plain ones need it.
        positions: S of every layer or block.
        padded: whether convolutions are zero-padded.
    """
    if topology == "plain":
        return _plain(law, path)
    side = math.sqrt(positions[-1])
    kept = perron_factor(side) if padded and side > 1 else 1.0
    scaled = law.weights.offset > 0.0
    if topology.endswith("skipinit"):
        if scaled and topology.startswith("post"):
            return Growth("exponential", RELU_GAIN**2, 0.25)
        return Growth("constant", 1.0, 1e-6)
    if law.family == "weights":
        return _unnormalized(topology, scaled, kept)
    if law.family == "samples" and not law.centred:
        return None
    return Growth("linear", kept if topology == "pre" else 0.9, 0.15)


def _unnormalized(topology: str, scaled: bool, kept: float) -> Growth:
    factor = 1.0 + kept * kept if topology == "pre" else POST_FACTOR
    if scaled and topology == "post":
        return Growth("exponential", 2.0 * RELU_GAIN**2, 0.3)
    return Growth("exponential", factor, 0.15)


def _plain(law: Law, path: Path | None) -> Growth | None:
    if path is None or len(path.q) < 2:
        return None
    half = len(path.q) // 2
    steps = max(len(path.q) - 1 - half, 1)
    if law.family == "samples" and not law.centred:
        # q = 1 / (2 (1 - b)) and 1 - b falls as 1 / l^2: a polynomial, here by its slope over the second half
        return Growth("linear", (path.q[-1] - path.q[half]) / steps, 0.5)
    factor = (path.q[-1] / path.q[half]) ** (1.0 / steps)
    kind: Kind = "exponential" if factor > 1.05 else "vanishing" if factor < 0.95 else "constant"
    return Growth(kind, factor, 0.05)


def nf_stream(depth: int, alpha: float = 0.2, start: float = 1.0) -> tuple[float, ...]:
    """Second moments of a normalizer-free stream x + alpha f(x / beta): start + alpha^2 l.

    Source: Brock et al. 2021, arXiv 2101.08692.

    >>> [round(q, 2) for q in nf_stream(3)]
    [1.04, 1.08, 1.12]
    """
    return tuple(start + alpha**2 * (block + 1) for block in range(depth))
