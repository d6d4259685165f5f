"""Power-of-two weights: each weight becomes 0 or a signed power of two, so that a product is a shift of wires.

With b bits, one for the sign and one code kept for zero, K = 2^(b-1) - 1 exponents are left. Per output channel c

    t_c = round(log2 max|w_c|) - (K - 1),    e = clip(round(log2|w|) - t_c, 0, K - 1),    q = sign(w) 2^e,

and q = 0 where log2|w| - t_c would round below 0. The weight stands for q * 2^t_c; t_c is an integer, so rescaling a
channel costs nothing.

Source: the rounded-logarithm code is that of SHE (arXiv 1906.00148, section 3) after LogNet (ICASSP 2017). The scale
2^t_c, the treatment of zero and the ``linear`` rounding are ours; the paper gives none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from layerscope.methods.encrypted.errors import QuantizationError

Rounding = Literal["log", "linear"]

#: Mantissa in [1, 2) at which a weight moves up to the next power of two.
_SWITCH = {"log": math.sqrt(2.0), "linear": 1.5}
#: Value, in units of 2^t, below which a weight becomes zero: where the same rule would choose exponent -1 (log), or
#: the midpoint of 0 and 1 (linear, smallest squared error).
_ZERO = {"log": math.sqrt(0.5), "linear": 0.5}


@dataclass(frozen=True)
class LogWeights:
    """Integer weights ``q`` in {0, +-1, +-2, ..., +-2^(K-1)} and one scale exponent per output channel."""

    q: Tensor
    """int64, the shape of the weight."""
    exponent: Tensor
    """int64 [O]: the weight stands for ``q * 2**exponent``."""

    def dequantize(self) -> Tensor:
        """The float64 weight that these codes stand for."""
        shape = (-1,) + (1,) * (self.q.ndim - 1)
        return self.q.double() * torch.exp2(self.exponent.double()).reshape(shape)

    def reduced(self) -> LogWeights:
        """The same weights with a power of two that all of a channel's codes share moved into its scale.

        Each power that is moved makes the accumulator a bit narrower.
        """
        smallest = torch.where(self.q == 0, 1 << 62, self.q.abs()).flatten(1).amin(1)
        _, shared = torch.frexp(torch.where(smallest == 1 << 62, 1, smallest).double())
        return self.coarser(shared.long() - 1)

    def coarser(self, by: Tensor) -> LogWeights:
        """Codes divided by 2^by, per channel; what falls below 1 becomes 0."""
        shift = by.clamp(max=62).reshape((-1,) + (1,) * (self.q.ndim - 1))
        return LogWeights(self.q.sign() * (self.q.abs() >> shift), self.exponent + by)


def exponent_count(bits: int) -> int:
    """Number K of exponents of a b-bit log code: 2^(b-1) - 1.

    Raises:
        QuantizationError: ``bits`` is not a whole number in 2..5.

    >>> [exponent_count(b) for b in (2, 3, 4, 5)]
    [1, 3, 7, 15]
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 5:
        raise QuantizationError(f"weight bits must be 2, 3, 4 or 5, got {bits!r} (2 = signs and zero only)")
    return int(2 ** (bits - 1) - 1)


def log_quantize(w: Tensor, bits: int = 4, *, rounding: Rounding = "log", per_channel: bool = True) -> LogWeights:
    """The nearest power-of-two codes of a weight [O, ...].

    Args:
        w: float weight, output channels first.
        bits: width of the code, 2..5.
        rounding: ``log`` moves to the next power at sqrt(2) * 2^e (the paper's), ``linear`` at 1.5 * 2^e
            (smallest squared error).
        per_channel: one scale exponent per output channel, or one for the whole layer.

    Raises:
        QuantizationError: NaN or infinity in ``w``, or ``bits`` or ``rounding`` unknown.
    """
    k = exponent_count(bits)
    if rounding not in _SWITCH:
        raise QuantizationError(f"rounding must be 'log' or 'linear', got {rounding!r}")
    if w.ndim < 1 or w.numel() == 0:
        raise QuantizationError(f"expected a weight [O, ...] with elements, got shape {tuple(w.shape)}")
    w = w.detach().double()
    if not bool(torch.isfinite(w).all()):
        raise QuantizationError("the weight holds NaN or infinity; train or load it again before quantising")
    rows = w.reshape(w.shape[0], -1)
    top = rows.abs().amax(1)
    if not per_channel:
        top = top.max().expand_as(top)
    exponent = _rounded_log2(top, rounding) - (k - 1)
    exponent = torch.where(top > 0, exponent, torch.zeros_like(exponent))
    scaled = torch.ldexp(rows, -exponent.unsqueeze(1))
    magnitude = scaled.abs()
    e = _rounded_log2(magnitude, rounding).clamp(0, k - 1)
    q = torch.sign(scaled).long() * (1 << e)
    q = torch.where(magnitude < _ZERO[rounding], torch.zeros_like(q), q)
    return LogWeights(q.reshape(w.shape), exponent)


def _rounded_log2(x: Tensor, rounding: Rounding) -> Tensor:
    """round(log2 x) with the switch point of ``rounding``, exact: from the bits of the float, no logarithm taken."""
    mantissa, exponent = torch.frexp(x)
    return exponent.long() - 1 + (2 * mantissa >= _SWITCH[rounding]).long()
