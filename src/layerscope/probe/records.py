"""What a probe leaves behind: frozen plain numbers, one record per call site, no tensors. Imports no torch.

Axis letters, everywhere in the package: N samples, C channels, S spatial or token positions, L layers.
A quantity that was not asked for, or that has no value here, is ``None``; a quantity that was measured and
came out as not-a-number stays NaN and is counted in ``nonfinite_share``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from layerscope._show import Shown

Role = Literal["conv", "linear", "norm", "activation", "pool", "attention", "block", "op", "other"]
Layout = Literal["conv", "token", "vector", "other"]
Level = Literal["light", "standard", "deep"]

#: A residual stream of fewer blocks says nothing about growth with depth: such a network is judged layer by layer.
FEWEST_BLOCKS = 3


@dataclass(frozen=True)
class LayerRecord:
    """The numbers measured at one call site (one execution of one module or functional op).

    Forward numbers are of the samples that were read: all of a batch at level ``deep``, the first 32 at the others.
    """

    index: int
    """Execution order, from 0."""
    name: str
    """Call site: the module path, with ``#2`` for the second call of a reused module; ``block.add`` for an op."""
    kind: str
    """Class or function name, such as ``Conv2d``."""
    role: Role
    layout: Layout
    """``conv`` [N, C, H, W], ``token`` [N, S, C], ``vector`` [N, C]."""
    shape: tuple[int, ...]
    """Shape of the output, sample axis first."""
    feeds: str | None = None
    """For a norm or activation inside a known block: the block's path."""
    residual: bool = False
    """A block whose output is the sum of two paths, read off the autograd graph."""

    # forward
    variance: float | None = None
    """Mean over channels of the unbiased variance over samples and positions."""
    std: float | None = None
    """Mean over channels of the unbiased standard deviation over samples and positions."""
    ms: float | None = None
    """Second moment: mean of x^2 over everything."""
    mean: float | None = None
    """Mean of x over everything."""
    absmax: float | None = None
    cosine: float | None = None
    """Mean cosine over pairs of different samples, each flattened unpooled. In [-1/(N-1), 1]."""
    cosine_pooled: float | None = None
    """The same after averaging over positions."""
    cosine_token: float | None = None
    """Mean cosine over pairs of different tokens of one sample (token layout only)."""
    stable_rank: float | None = None
    """N / largest eigenvalue of the cosine Gram matrix; of the first 32 samples of a batch, as all ranks."""
    participation_ratio: float | None = None
    """trace(M)^2 / |M|_F^2 of the cosine Gram matrix M: a lower bound on its rank."""
    effective_rank: float | None = None
    """exp(entropy) of the normalized eigenvalues of the cosine Gram matrix."""
    effective_rank_centred: float | None = None
    """The same after subtracting the mean over samples."""
    dead_share: float | None = None
    """Share of channels that are zero for every sample and position."""
    dead_samples: int | None = None
    """Samples whose output is all zero; left out of the cosine."""
    zero_share: float | None = None
    """Share of exact zeros (from a sketch at level ``standard``)."""
    nonfinite_share: float = 0.0
    """Share of (sample, channel) maps that hold a NaN or infinity."""

    # backward, with respect to this call site's output
    grad_norm: float | None = None
    """Frobenius norm of dLoss/d(output) of the whole batch: the raw, scale-dependent one."""
    grad_scaled: float | None = None
    """grad_norm * rms(output): unchanged by any rescaling that leaves the function unchanged."""

    # the module's own weight
    weight_norm: float | None = None
    """Frobenius norm of the weight; of the parameter behind it where the weight is parametrized."""
    weight_grad: float | None = None
    """Frobenius norm of its gradient; 0 where none reached it, None where it is frozen."""

    @property
    def relative_update(self) -> float | None:
        """|dL/dW| / |W|: the relative step at learning rate 1."""
        if self.weight_grad is None or not self.weight_norm:
            return None
        return self.weight_grad / self.weight_norm


@dataclass(frozen=True)
class Profile(Shown):
    """One forward and backward pass of one network at its present weights, seen layer by layer."""

    source: str
    """What was probed, as the user named it, or the class name."""
    norm: str
    """The norm spec, or ``as is``."""
    records: tuple[LayerRecord, ...]
    level: Level
    batch_size: int
    """Size of one training batch: statistics over the batch see this many samples."""
    chunks: int
    """Batches of that size that were probed and averaged."""
    in_shape: tuple[int, ...]
    seed: int | None
    loss: float | None
    classifier: str | None = None
    """Name of the record whose input is the classifier input (the last linear layer)."""
    readout_cosine: float | None = None
    """Mean cosine between samples at the classifier input (after pooling)."""
    readout_cosine_unpooled: float | None = None
    """The same at the last map before pooling; equal to the above where nothing is pooled."""
    readout_effective_rank: float | None = None
    """Centred effective rank at the classifier input."""
    readout_spread: float | None = None
    """std across samples / rms at the classifier input, mean over features."""
    batch_noise: float | None = None
    """nu: variance of a sample's readout over its batch companions / variance over samples. 0 for batch-free nets."""
    own_noise: float | None = None
    """For a network whose noise is always on: variance of the classifier input over its draws / variance of its
    expectation over samples; the two readout cosines are then those of the expectations. 0 where nothing is random in
    evaluation mode."""
    dtype: str = "float32"
    device: str = "cpu"
    seconds: float | None = None
    versions: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    context: tuple[tuple[str, str], ...] = field(default=())
    """Anything the caller wants to keep beside the numbers (data set, init, draws)."""

    def of(self, *roles: Role) -> tuple[LayerRecord, ...]:
        """The records of these roles, in execution order."""
        return tuple(r for r in self.records if r.role in roles)

    def __getitem__(self, name: str) -> LayerRecord:
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(name)
