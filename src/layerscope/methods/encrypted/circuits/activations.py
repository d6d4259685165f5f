"""Exact ReLU, saturation, sign and maximum.

The ReLU is the paper's (Fig. 2) and right. Its maximum circuit, as drawn and as released, is wrong on a quarter or more
of all inputs (when signs differ it inverts the comparison of the low bits instead of deciding by the sign); the ones
here are proven by exhaustion in the tests.
"""

from __future__ import annotations

from layerscope.methods.encrypted.circuits.gates import FALSE, Builder, Word


def relu(b: Builder, x: Word) -> Word:
    """max(x, 0) of a two's-complement word: n - 1 ANDs of AND-depth 1; one bit shorter, unsigned."""
    positive = x[-1] ^ 1
    return [b.and_(positive, w) for w in x[:-1]]


def saturate(b: Builder, x: Word, bits: int) -> Word:
    """min(x, 2^bits - 1) of an unsigned word: an OR over the dropped high bits, ORed into each kept one."""
    if len(x) <= bits:
        return x
    high = x[bits:]
    while len(high) > 1:  # a balanced tree, so that depth grows with the logarithm
        high = [b.or_(p, q) for p, q in zip(high[::2], high[1::2], strict=False)] + (
            [high[-1]] if len(high) % 2 else []
        )
    return [b.or_(w, high[0]) for w in x[:bits]]


def requantize(b: Builder, acc: Word, shift: int, bits: int, *, signed: bool = True) -> Word:
    """min(max(acc, 0) >> shift, 2^bits - 1): the low ANDs of the ReLU are simply not computed.

    ``signed`` says whether ``acc`` is two's complement. Always ``bits`` wires; missing high ones are constant.
    """
    kept = acc[shift:]
    if signed:
        kept = relu(b, kept) if kept else []
    out = saturate(b, kept, bits)
    return out + [FALSE] * (bits - len(out))


def sign(x: Word, *, signed: bool = True) -> int:
    """1 where x >= 0: the inverted sign bit, no gate."""
    return x[-1] ^ 1 if signed else 1


def greater(b: Builder, x: Word, y: Word) -> int:
    """X > y of unsigned words, least significant first: where bits differ, x's bit decides anew."""
    g = FALSE
    for p, q in zip(x, y, strict=True):
        g = b.xor(g, b.and_(b.xor(p, q), b.xor(g, p)))
    return g


def maximum(b: Builder, x: Word, y: Word) -> Word:
    """Max of unsigned words of n bits: 6n - 2 gates (x ^ y is shared), 2n ANDs, AND-depth n + 1."""
    g = greater(b, x, y)
    return [b.xor(q, b.and_(g, b.xor(p, q))) for p, q in zip(x, y, strict=True)]


def signed_maximum(b: Builder, x: Word, y: Word) -> Word:
    """Max of two's-complement words: invert both sign bits (free), compare unsigned, invert back."""
    out = maximum(b, [*x[:-1], x[-1] ^ 1], [*y[:-1], y[-1] ^ 1])
    return [*out[:-1], out[-1] ^ 1]


def maximum_tree(b: Builder, words: list[Word], *, signed: bool = False) -> Word:
    """Max of many words, as a balanced tree."""
    unit = signed_maximum if signed else maximum
    while len(words) > 1:
        paired = [unit(b, p, q) for p, q in zip(words[::2], words[1::2], strict=False)]
        words = paired + ([words[-1]] if len(words) % 2 else [])
    return words[0]
