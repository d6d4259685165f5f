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
from functools import lru_cache
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


Add = Callable[[Word, Word, int, int], Word]
"""(x, y, carry, width) -> x + y + carry modulo 2^width, for words of unsigned bits."""


def accumulate(b: Builder, terms: Sequence[Term], bias: int, lo: int, hi: int, kind: Accumulator = "csa") -> Word:
    """The sum of all terms and ``bias``, known to lie in [lo, hi]."""
    width, terms = width_of(lo, hi), [t for t in terms if t.word]
    if kind == "csa":
        return _csa(b, terms, bias, width)

    def add(x: Word, y: Word, carry: int, wide: int) -> Word:
        return ripple(b, x, y, carry, width=wide)

    return _TREES[kind](add, terms, bias, width)


def tree_gates(terms: Sequence[Term], bias: int, lo: int, hi: int, kind: Accumulator) -> int:
    """Gates of a tree of adders without building it: equal adders are built once and looked up after.

    Never too few, and exact but for about one neuron in a thousand, where a later adder makes a gate or two needless.
    What an adder takes depends only on which of its input bits are constant or equal, and a tree has few such patterns.
    So no two terms need wires of their own: the words of ``terms`` are 2, 4, 6, ... in each.
    """
    total = 0

    def add(x: Word, y: Word, carry: int, wide: int) -> Word:
        nonlocal total
        gates, out = _adder(tuple(x), tuple(y), carry, wide)
        total += gates
        return list(out)

    _TREES[kind](add, [t for t in terms if t.word], bias, width_of(lo, hi))
    return total


@lru_cache(maxsize=1 << 16)
def _adder(x: tuple[int, ...], y: tuple[int, ...], carry: int, width: int) -> tuple[int, tuple[int, ...]]:
    """Gates of one ripple adder, and its output with wires renamed in the order in which they appear."""
    b = Builder()
    wires: dict[tuple[int, int], int] = {}
    sides = []
    for side, word in enumerate((x, y)):
        for w in word:
            if w > TRUE and (w & ~1, side) not in wires:
                wires[w & ~1, side] = b.input()
        sides.append([w if w <= TRUE else wires[w & ~1, side] ^ (w & 1) for w in word])
    out = ripple(b, sides[0], sides[1], carry, width=width)
    names: dict[int, int] = {FALSE: FALSE}
    renamed = tuple(names.setdefault(w & ~1, 2 * len(names)) ^ (w & 1) for w in out)
    return b.build(out).gates, renamed


def constant(value: int, width: int) -> Word:
    """A known integer modulo 2^width."""
    return [TRUE if (value >> i) & 1 else FALSE for i in range(width)]


def _csa(b: Builder, terms: Sequence[Term], bias: int, width: int) -> Word:
    columns: list[list[int]] = [[] for _ in range(width)]
    known = bias
    for term in terms:
        if term.sign < 0:  # -x = ~x - (2^n - 1)
            known -= ((1 << len(term.word)) - 1) << term.exponent
        for i, wire in enumerate(term.word):
            if term.exponent + i < width:
                columns[term.exponent + i].append(wire ^ (term.sign < 0))
    return compress(b, columns, known)


def _range(add: Add, terms: Sequence[Term], bias: int, width: int) -> Word:
    order = count()
    heaps: dict[int, list[tuple[int, int, Word]]] = {1: [], -1: []}
    if bias:
        heaps[1 if bias > 0 else -1].append((abs(bias), next(order), constant(abs(bias), abs(bias).bit_length())))
    for term in terms:
        heaps[term.sign].append((term.top << term.exponent, next(order), [FALSE] * term.exponent + list(term.word)))
    totals: dict[int, Word] = {}
    for side, heap in heaps.items():
        heapq.heapify(heap)
        while len(heap) > 1:
            (top_x, _, x), (top_y, _, y) = heapq.heappop(heap), heapq.heappop(heap)
            top = top_x + top_y
            heapq.heappush(heap, (top, next(order), add(x, y, FALSE, min(max(1, top.bit_length()), width))))
        totals[side] = heap[0][2] if heap else []
    plus, minus = ((totals[side] + [FALSE] * width)[:width] for side in (1, -1))
    return add(plus, complement(minus), TRUE, width) if totals[-1] else plus


def _balanced(add: Add, terms: Sequence[Term], bias: int, width: int, level_width: Callable[[int], int]) -> Word:
    words: list[Word] = []
    known, wide = bias, min(level_width(0), width)
    for term in terms:
        word = extend([FALSE] * term.exponent + list(term.word) + [FALSE], wide)
        if term.sign < 0:
            word, known = complement(word), known + 1
        words.append(word)
    level = 0
    while len(words) > 1:
        level += 1
        wide = min(level_width(level), width)  # nothing above the result's width is ever read
        paired = [
            add(extend(x, wide), extend(y, wide), FALSE, wide) for x, y in zip(words[::2], words[1::2], strict=False)
        ]
        words = paired + ([extend(words[-1], wide)] if len(words) % 2 else [])
    total = extend(words[0], width) if words else constant(0, width)
    return add(total, constant(known, width), FALSE, width) if known else total


def _mixed(add: Add, terms: Sequence[Term], bias: int, width: int) -> Word:
    widest = max((len(t.word) + t.exponent for t in terms), default=0) + 1
    return _balanced(add, terms, bias, width, lambda level: widest + level)


def _fixed16(add: Add, terms: Sequence[Term], bias: int, width: int) -> Word:
    return _balanced(add, terms, bias, width, lambda level: max(16, width))


_TREES: dict[str, Callable[[Add, Sequence[Term], int, int], Word]] = {
    "fixed16": _fixed16,
    "mixed": _mixed,
    "range": _range,
}
