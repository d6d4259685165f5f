"""Gates and depth of the ``csa`` accumulator without building it: exact, and tested against built circuits.

For networks of millions of adders building is too slow. The compression of columns is simple enough to be counted from
the columns' heights alone; the other accumulators depend on their pairing and are built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from layerscope.methods.encrypted.circuits.columns import compressed_depth, compressed_gates
from layerscope.methods.encrypted.circuits.neuron import Tap
from layerscope.methods.encrypted.graph import width_of


def csa_gates(taps: Sequence[Tap] | Mapping[Tap, int], bias: int = 0) -> int:
    """Gates of the ``csa`` accumulator.

    Args:
        taps: the summands, or how often each kind of summand occurs.
        bias: the constant.
    """
    return compressed_gates(*_columns(taps, bias))


def csa_depth(taps: Sequence[Tap] | Mapping[Tap, int], bias: int = 0) -> int:
    """AND-depth of the ``csa`` accumulator."""
    return compressed_depth(*_columns(taps, bias))


def _columns(taps: Sequence[Tap] | Mapping[Tap, int], bias: int) -> tuple[list[int], int]:
    """Signals in each column of the sum's word, and the constant that joins them."""
    kinds = taps if isinstance(taps, Mapping) else Counter(taps)
    lo = bias + sum(n * min(t.value(t.lo), t.value(t.hi)) for t, n in kinds.items())
    hi = bias + sum(n * max(t.value(t.lo), t.value(t.hi)) for t, n in kinds.items())
    width = width_of(lo, hi)
    heights, known = [0] * width, bias
    for tap, n in kinds.items():
        for first, bits, negative in _pieces(tap):
            if negative:
                known -= n * (((1 << bits) - 1) << first)
            for column in range(first, min(first + bits, width)):
                heights[column] += n
    return heights, known


def _pieces(tap: Tap) -> Iterator[tuple[int, int, bool]]:
    """(lowest column, bits, is negative) of a tap's unsigned terms; a signed code's sign bit is one of its own."""
    if tap.weight == 0:
        return
    shift = tap.exponent - tap.lost
    bits, first = tap.width + min(shift, 0), max(shift, 0)
    if bits <= 0 and tap.lo < 0:
        bits = 1
    if bits <= 0:
        return
    negative = tap.weight < 0
    if tap.lo >= 0:
        yield first, bits, negative
        return
    if bits > 1:
        yield first, bits - 1, negative
    yield first + bits - 1, 1, not negative
