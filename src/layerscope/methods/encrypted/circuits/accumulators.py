"""Four ways to sum signed, shifted words, all exact; they differ in gates and depth only.

=========  =======================================================================================================
fixed16    balanced tree of 16-bit ripple adders (the strawman; wider where 16 bits cannot hold the sum)
mixed      balanced tree whose adders at level n have (b + n) bits, b the width of a term: the paper's accumulator
range      one tree for positive and one for negative terms, each node exactly as wide as its largest value, small
           ones paired first, one subtraction at the end (ours)
csa        compression of all bits column by column, earliest first, and one constant for bias and signs (ours); carries
           travel in pairs, see :mod:`~layerscope.methods.encrypted.circuits.columns`
=========  =======================================================================================================

The result has the width of the sound range [lo, hi], never more: two's complement if ``lo < 0``, else unsigned.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

from layerscope.methods.encrypted.circuits.adders import complement, extend, ripple
from layerscope.methods.encrypted.circuits.columns import compress
from layerscope.methods.encrypted.circuits.gates import FALSE, TRUE, Builder, Word
from layerscope.methods.encrypted.graph import width_of

Accumulator = Literal["fixed16", "mixed", "range", "csa"]
ACCUMULATORS: tuple[Accumulator, ...] = get_args(Accumulator)


@dataclass(frozen=True)
class Term:
    """``sign * (word << exponent)``, the word unsigned and at most ``top``."""

    word: tuple[int, ...]
    exponent: int
    sign: int
    top: int


def accumulate(b: Builder, terms: Sequence[Term], bias: int, lo: int, hi: int, kind: Accumulator = "csa") -> Word:
    """The sum of all terms and ``bias``, known to lie in [lo, hi]."""
    width = width_of(lo, hi)
    out = _KINDS[kind](b, [t for t in terms if t.word], bias, width, lo < 0)
    assert len(out) == width
    return out


def constant(value: int, width: int) -> Word:
    """A known integer modulo 2^width."""
    return [TRUE if (value >> i) & 1 else FALSE for i in range(width)]


def _csa(b: Builder, terms: Sequence[Term], bias: int, width: int, signed: bool) -> Word:
    columns: list[list[int]] = [[] for _ in range(width)]
    known = bias
    for term in terms:
        if term.sign < 0:  # -x = ~x - (2^n - 1)
            known -= ((1 << len(term.word)) - 1) << term.exponent
        for i, wire in enumerate(term.word):
            if term.exponent + i < width:
                columns[term.exponent + i].append(wire ^ (term.sign < 0))
    return compress(b, columns, known)


def _range(b: Builder, terms: Sequence[Term], bias: int, width: int, signed: bool) -> Word:
    order = count()
    heaps: dict[int, list[tuple[int, int, int, Word]]] = {1: [], -1: []}
    if bias:
        heaps[1 if bias > 0 else -1].append((abs(bias), 0, next(order), constant(abs(bias), abs(bias).bit_length())))
    for term in terms:
        word = [FALSE] * term.exponent + list(term.word)
        arrival = max(b.arrival(w) for w in term.word)
        heaps[term.sign].append((term.top << term.exponent, arrival, next(order), word))
    totals: dict[int, Word] = {}
    for side, heap in heaps.items():
        heapq.heapify(heap)
        while len(heap) > 1:
            top_x, _, _, x = heapq.heappop(heap)
            top_y, _, _, y = heapq.heappop(heap)
            top = top_x + top_y
            total = ripple(b, x, y, width=max(1, top.bit_length()))
            heapq.heappush(heap, (top, max(b.arrival(w) for w in total), next(order), total))
        totals[side] = heap[0][3] if heap else []
    plus, minus = totals[1], totals[-1]
    if not minus:
        return (plus + [FALSE] * width)[:width]
    return ripple(b, (plus + [FALSE] * width)[:width], complement((minus + [FALSE] * width)[:width]), TRUE, width=width)


def _balanced(b: Builder, terms: Sequence[Term], bias: int, width: int, level_width: Callable[[int], int]) -> Word:
    words: list[Word] = []
    known = bias
    for term in terms:
        word = extend([FALSE] * term.exponent + list(term.word) + [FALSE], level_width(0))
        if term.sign < 0:
            word, known = complement(word), known + 1
        words.append(word)
    level = 0
    while len(words) > 1:
        level += 1
        wide = level_width(level)
        paired = [
            ripple(b, extend(x, wide), extend(y, wide), width=wide)
            for x, y in zip(words[::2], words[1::2], strict=False)
        ]
        words = paired + ([extend(words[-1], wide)] if len(words) % 2 else [])
    total = extend(words[0], width) if words else constant(0, width)
    return ripple(b, total, constant(known, width), width=width) if known else total


def _mixed(b: Builder, terms: Sequence[Term], bias: int, width: int, signed: bool) -> Word:
    widest = max((len(t.word) + t.exponent for t in terms), default=0) + 1
    return _balanced(b, terms, bias, width, lambda level: widest + level)


def _fixed16(b: Builder, terms: Sequence[Term], bias: int, width: int, signed: bool) -> Word:
    return _balanced(b, terms, bias, width, lambda level: max(16, width))


_KINDS: dict[str, Callable[[Builder, Sequence[Term], int, int, bool], Word]] = {
    "fixed16": _fixed16,
    "mixed": _mixed,
    "range": _range,
    "csa": _csa,
}
