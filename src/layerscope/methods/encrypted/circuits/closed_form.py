"""Gate counts without building a circuit: exact, and tested against built circuits.

For networks of millions of adders building is too slow; the compression of columns is simple enough to be counted from
the columns' heights alone. The other accumulators depend on their pairing and are built.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.methods.encrypted.circuits.neuron import Tap, interval
from layerscope.methods.encrypted.graph import width_of


def csa_gates(taps: Sequence[Tap], bias: int = 0) -> int:
    """Gates of the ``csa`` accumulator: 5 a full adder, 2 a half adder, a XOR per extra bit of the last column."""
    lo, hi = interval(taps, bias)
    width = width_of(lo, hi)
    heights = [0] * (width + 1)
    known = bias
    for first, bits, negative in _pieces(taps):
        if negative:
            known -= ((1 << bits) - 1) << first
        for column in range(first, min(first + bits, width)):
            heights[column] += 1
    return count_columns(heights, known, width)


def count_columns(heights: Sequence[int], known: int, width: int) -> int:
    """Gates to add columns of ``heights`` signals and the constant ``known`` modulo 2^width."""
    gates = carries = 0
    for j in range(width):
        signals = heights[j] + carries
        if j == width - 1:
            return gates + max(signals - 1, 0)
        full = max(signals - 1, 0) // 2
        left = signals - 2 * full
        gates += 5 * full + (2 if left == 2 else 0)
        carries = full + (left == 2 or (left == 1 and (known >> j) & 1 == 1))
    return gates


def _pieces(taps: Sequence[Tap]) -> list[tuple[int, int, bool]]:
    """(lowest column, bits, is negative) of every unsigned term; the sign bit of a signed code is one of its own."""
    out: list[tuple[int, int, bool]] = []
    for tap in taps:
        if tap.weight == 0:
            continue
        shift = tap.exponent - tap.lost
        bits, first = tap.width + min(shift, 0), max(shift, 0)
        if bits <= 0 and tap.lo < 0:
            bits = 1
        if bits <= 0:
            continue
        negative = tap.weight < 0
        if tap.lo >= 0:
            out.append((first, bits, negative))
            continue
        if bits > 1:
            out.append((first, bits - 1, negative))
        out.append((first + bits - 1, 1, not negative))
    return out
