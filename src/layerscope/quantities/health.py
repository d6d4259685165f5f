"""Shares of what is dead, zero or not a number."""

from __future__ import annotations

from torch import Tensor

from layerscope.quantities.moments import Tables


def dead_share(t: Tables) -> Tensor:
    """Share of channels that are zero for every sample and position. Shape [...], in [0, 1]."""
    return (t.norms == 0).all(-2).double().mean(-1)


def dead_samples(t: Tables) -> Tensor:
    """Number of samples whose output is all zero. Shape [...]."""
    return (t.norms == 0).all(-1).sum(-1)


def zero_share(x: Tensor) -> Tensor:
    """Share of exact zeros in ``x`` (the whole tensor, or a sketch of it). Scalar, in [0, 1]."""
    return (x == 0).double().mean()


def nonfinite_share(t: Tables) -> Tensor:
    """Share of (sample, channel) maps that hold a NaN or an infinity. Shape [...], in [0, 1].

    Read off the sums, which stay finite for every finite map short of the dtype's largest number.
    """
    return (~t.sums.isfinite()).double().mean((-2, -1))


def saturation_share(y: Tensor, level: float = 0.9) -> Tensor:
    """Share of outputs of a bounded activation (tanh, erf) beyond ``level`` in magnitude. Scalar, in [0, 1]."""
    return (y.abs() > level).double().mean()
