"""Residual stacks: how second moments and similarity go along the stream, block by block.

A block is two conv layers with norms. **Pre-activation**, x + conv2(act(norm2(conv1(act(norm1(x)))))): the stream is
a sum of convolution outputs, so it stays Gaussian, and second moments and covariances of stream and branch simply add.
**Post-activation**, act(x + norm2(conv2(act(norm1(conv1(x)))))): the stream is rectified and remembers earlier
blocks channel by channel, so it is followed as a cloud of channels, each at two positions of two samples. What norm2
hands on is replaced by a unit Gaussian with those correlations that give the same ReLU features (the inverse of kappa
applied to the step of :mod:`layerscope.theory.sets`). Where the map shrinks, the skip path is a normalized
convolution, and the stream starts anew as the sum of two Gaussians.

Gradients along a stream are not covered.

With SkipInit the branch is zero, and the stream is what stem and transitions make of it.

Assumptions: those of the plain recursion. Stated error: 0.08 in cosine without a border (width >= 64), 0.12 with zero
padding.

Source: the growth of the second moment is De & Smith 2020, arXiv 2002.10444; the similarity recursion is derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope.theory.kernels import kappa
from layerscope.theory.laws import Law
from layerscope.theory.padding import NO_BORDER, Border, border
from layerscope.theory.recursion import Path, Stack, build_layer
from layerscope.theory.sets import Layer

Floats = NDArray[np.float64]

#: Channels of the cloud that stands for a post-activation stream.
CHANNELS = 4096

_TABLE = np.linspace(-1.0, 1.0, 4001)
_KAPPA = kappa(_TABLE)


@dataclass(frozen=True)
class Pairs:
    """Second moment, and cosines of two positions (a), of two samples at one position (b) and at two (d)."""

    q: float
    a: float
    b: float
    d: float
    mean2: float = 0.0
    """Square of the mean over channels; 0 for what comes out of a convolution."""

    def __add__(self, other: Pairs) -> Pairs:
        """Of a sum of independent signals of mean zero."""
        q = self.q + other.q
        return Pairs(q, *((self.q * m + other.q * o) / q for m, o in zip(self.rest, other.rest, strict=True)))

    @property
    def rest(self) -> tuple[float, float, float]:
        """The three correlations."""
        return self.a, self.b, self.d


def run_residual(stack: Stack, topology: str, seed: int = 0) -> Path:
    """The stream after each block.

    Args:
        stack: law and sizes of each *block*; the stem has those of the first.
        topology: ``post``, ``pre``, ``post-skipinit`` or ``pre-skipinit``.
        seed: of the draws.
    """
    blocks = _Blocks(stack, seed, active=not topology.endswith("skipinit"))
    found = (blocks.pre if topology.startswith("pre") else blocks.post)()
    b, d, a, q = (tuple(getattr(p, k) for p in found) for k in "bdaq")
    return Path(b, d, a, q, gain=(), gain_raw=())


class _Blocks:
    """The layers of one residual stack, and the two ways of putting them together."""

    def __init__(self, stack: Stack, seed: int, active: bool) -> None:
        self.stack, self.seed, self.active = stack, seed, active
        self._layers: dict[tuple[int, int], Layer] = {}
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def pre(self) -> list[Pairs]:
        c = self.stack.input_cosine
        stream = self.conv(Pairs(1.0, c, c, c), 0)
        stream = self.conv(self.relu(self.normed(stream, 0)), 0)  # the stem's norm and activation, and one convolution
        found = []
        for block in range(len(self.stack.sizes)):
            before = stream
            if self.shrinks(block):
                stream = self.conv(self.normed(stream, block - 1), block, first=True)
            if self.active:
                inner = self.conv(self.relu(self.normed(before, max(block - 1, 0))), block, first=True)
                stream = stream + self.conv(self.relu(self.normed(inner, block)), block)
            found.append(stream)
        return found

    def post(self) -> list[Pairs]:
        c = self.stack.input_cosine
        cloud = np.maximum(self.draw(self.normed(self.conv(Pairs(1.0, c, c, c), 0), 0)), 0.0)
        found = []
        for block in range(len(self.stack.sizes)):
            stream = _read(cloud)
            if self.shrinks(block):
                cloud = self.draw(self.normed(self.conv(stream, block, first=True), block))
            if self.active:
                inner = self.relu(self.normed(self.conv(stream, block, first=True), block))
                cloud = cloud + self.draw(self.normed(self.conv(inner, block), block))
            cloud = np.maximum(cloud, 0.0)
            found.append(_read(cloud))
        return found

    def shrinks(self, block: int) -> bool:
        positions = self.stack.positions
        return block > 0 and positions[block] != positions[block - 1]

    def conv(self, x: Pairs, block: int, first: bool = False) -> Pairs:
        """He (or centred) weights on features: second moments double, correlations fade at the border."""
        edge = self._border(block, first)
        law = self.stack.law.weights if self.stack.law.family == "weights" else None
        scale = law.variance if law else 2.0
        centred = (law is not None and law.centred) or self.stack.law.filters_centred
        mean2 = x.mean2 if centred else 0.0
        q = scale * (edge.met * (x.q - mean2) + edge.leak * mean2)

        def through(r: float, met: float, leak: float) -> float:
            return scale * (met * (x.q * r - mean2) + leak * mean2) / q

        return Pairs(
            q,
            through(x.a, edge.shared, edge.leak_apart),
            through(x.b, edge.met, edge.leak),
            through(x.d, edge.shared, edge.leak_apart),
        )

    def normed(self, x: Pairs, block: int) -> Pairs:
        """A Gaussian that a ReLU turns into the features of norm and ReLU."""
        law = self.stack.law
        if law.family == "weights":
            return x
        sizes = self.stack.sizes[block]
        if sizes not in self._layers:
            self._layers[sizes] = build_layer([law], [sizes], self.seed)
        clipped = (np.array([[min(max(r, 0.0), 1.0)]]) for r in x.rest)
        step = self._layers[sizes].step(*clipped)
        return Pairs(2.0 * float(step.q[0, 0]), *(_inverse(float(v[0, 0])) for v in (step.a, step.b, step.d)))

    def relu(self, x: Pairs) -> Pairs:
        """Features of a Gaussian."""
        a, b, d = (float(kappa(r)) for r in x.rest)
        return Pairs(x.q / 2.0, a, b, d, mean2=x.q / (2.0 * math.pi))

    def draw(self, x: Pairs) -> Floats:
        """A cloud [2 samples, 2 positions, channels] of Gaussians."""
        g = self._generator.standard_normal((4, CHANNELS // 2))
        g = np.concatenate([g, -g], axis=1)
        a, b, d = x.rest
        parts = (1 + a + b + d, 1 + a - b - d, 1 - a + b - d, 1 - a - b + d)
        both, samples, positions, mixed = (math.sqrt(max(p, 0.0)) * row for p, row in zip(parts, g, strict=True))
        cloud = [[both + s * samples + p * positions + s * p * mixed for p in (1, -1)] for s in (1, -1)]
        return math.sqrt(x.q) / 2.0 * np.array(cloud)

    def _border(self, block: int, first: bool) -> Border:
        stack = self.stack
        if not stack.padded or stack.positions[0] == 1:
            return NO_BORDER
        side = max(1, round(math.sqrt(stack.positions[block])))
        before = max(1, round(math.sqrt(stack.positions[max(block - 1, 0)]))) if first else side
        return border(side, before)


def _read(cloud: Floats) -> Pairs:
    q = float((cloud**2).mean())
    a = float((cloud[:, 0] * cloud[:, 1]).mean()) / q
    b = float((cloud[0] * cloud[1]).mean()) / q
    d = float((cloud[0, 0] * cloud[1, 1] + cloud[0, 1] * cloud[1, 0]).mean()) / (2.0 * q)
    return Pairs(q, a, b, d, float(cloud.mean()) ** 2)


def _inverse(cosine: float) -> float:
    """The correlation of Gaussians whose ReLU features have this cosine."""
    return float(np.interp(cosine, _KAPPA, _TABLE))


def covers(law: Law) -> bool:
    """Whether the stream of a norm can be followed: not with the scaled ReLU, nor without centring over a batch."""
    scaled = law.family == "weights" and law.weights.offset > 0.0
    return not scaled and not (law.family == "samples" and not law.centred)
