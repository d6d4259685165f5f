"""Compression of columns of bits to one word: what the ``csa`` accumulator is made of, and its count without building.

A full adder takes five gates. Where two of its inputs come as a *pair* (x, x ^ y) it takes four, and two such adders in
a row, which hand their carries on as a pair again, take eight (the first exclusive ors are shared with the pairing of
the carries). So each pair of carries saves one gate in ten, whatever the sum.

Source: the paired block is the idea of Demenkov, Kojevnikov, Kulikov and Yaroslavtsev, "New upper bounds on the Boolean
circuit complexity of symmetric functions", Information Processing Letters 110, 2010; the gates here were found by
search and are proven by exhaustion in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.methods.encrypted.circuits.gates import Builder, Word

Pair = tuple[int, int]
"""Wires (x, x ^ y) of two bits x and y of one column."""


def paired_half_adder(b: Builder, pair: Pair, one: int = 0) -> tuple[int, int]:
    """(sum, carry) of the pair's bits and the constant ``one``: 1 gate."""
    x, p = pair
    return p ^ one, b.or_(x, p) if one else b.and_(x, p ^ 1)


def paired_full_adder(b: Builder, z: int, pair: Pair) -> tuple[int, int]:
    """(sum, carry) of three bits, two of them a pair: 4 gates of which 1 AND."""
    x, p = pair
    return b.xor(z, p), b.xor(x, b.and_(p, b.xor(x, z)))


def paired_double_adder(b: Builder, z: int, first: Pair, second: Pair) -> tuple[int, Pair]:
    """(sum, pair of carries) of five bits, four of them in pairs: 8 gates of which 2 AND."""
    (x1, p1), (x2, p2) = first, second
    s1 = b.xor(z, p1)
    s = b.xor(s1, p2)
    low = b.and_(p1 ^ 1, b.xor(z, x1) ^ 1)
    carry = b.xor(s1, low) ^ 1
    return s, (carry, b.xor(low, b.and_(p2 ^ 1, b.xor(x2, s))) ^ 1)


def compress(b: Builder, columns: Sequence[Sequence[int]], known: int) -> Word:
    """The sum of all bits, those of column j worth 2^j, plus ``known``, modulo 2^(number of columns)."""
    out: Word = []
    singles: list[int] = []
    pairs: list[Pair] = []
    for j, column in enumerate(columns):
        bits = sorted([*column, *singles], key=lambda w: (b.arrival(w), w))
        bit = (known >> j) & 1
        if j == len(columns) - 1:  # no column takes the carries
            s = bit
            for wire in [*bits, *(p for _, p in pairs)]:
                s = b.xor(s, wire)
            out.append(s)
            break
        singles = []
        z = bits.pop(0) if len(bits) % 2 else None
        pairs += [(x, b.xor(x, y)) for x, y in zip(bits[::2], bits[1::2], strict=True)]
        pairs.sort(key=lambda pair: (b.arrival(pair[1]), pair))
        if z is None and pairs:
            z, carry = paired_half_adder(b, pairs.pop(0), bit)
            singles.append(carry)
            bit = 0
        carries: list[Pair] = []
        while len(pairs) > 1:
            assert z is not None
            z, both = paired_double_adder(b, z, pairs.pop(0), pairs.pop(0))
            carries.append(both)
        if pairs:
            assert z is not None
            z, carry = paired_full_adder(b, z, pairs.pop())
            singles.append(carry)
        if z is None:
            out.append(bit)
        elif bit:  # z + 1 costs no gate
            out.append(z ^ 1)
            singles.append(z)
        else:
            out.append(z)
        pairs = carries
    return out


def compressed_gates(heights: Sequence[int], known: int) -> int:
    """Gates of :func:`compress` for ``heights[j]`` bits in column j, none of them constant or equal."""
    gates = singles = pairs = 0
    for j, height in enumerate(heights):
        bits = height + singles
        if j == len(heights) - 1:
            return gates + max(bits + pairs - 1, 0)
        formed, odd = divmod(bits, 2)
        chained = formed + pairs
        halved = not odd and chained > 0
        doubles, lone = divmod(chained - halved, 2)
        # in the column before the last nothing reads the first of two carries, only whether they differ
        gates += formed + halved + (8 if j < len(heights) - 2 else 7) * doubles + 4 * lone
        singles, pairs = halved + lone + (odd and (known >> j) & 1), doubles
    return gates


def compressed_depth(heights: Sequence[int], known: int) -> int:
    """AND-depth of :func:`compress` for bits that all arrive at depth 0: its schedule replayed on arrivals alone."""
    singles: list[int] = []
    pairs: list[int] = []
    deepest = 0
    for j, height in enumerate(heights):
        bits = sorted([*[0] * height, *singles])
        if j == len(heights) - 1:
            return max([deepest, *bits, *pairs])
        singles = []
        z = bits.pop(0) if len(bits) % 2 else None
        pairs = sorted(pairs + bits[1::2])
        bit = (known >> j) & 1
        if z is None and pairs:
            z = pairs.pop(0)
            singles.append(z + 1)
            bit = 0
        carries = []
        while len(pairs) > 1:
            assert z is not None
            z = max(z, pairs.pop(0), pairs.pop(0))
            carries.append(z + 1)
        if pairs:
            assert z is not None
            z = max(z, pairs.pop())
            singles.append(z + 1)
        if bit and z is not None:
            singles.append(z)
        deepest = max(deepest, z or 0)
        pairs = carries
    return deepest
