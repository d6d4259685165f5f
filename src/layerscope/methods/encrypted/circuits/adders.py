"""Adders. Words are least significant bit first, unsigned unless said; widths are always exact, never fixed."""

from __future__ import annotations

from collections.abc import Callable

from layerscope.methods.encrypted.circuits.gates import FALSE, Builder, Word

FullAdder = Callable[[Builder, int, int, int], tuple[int, int]]


def half_adder(b: Builder, x: int, y: int) -> tuple[int, int]:
    """(sum, carry): 2 gates."""
    return b.xor(x, y), b.and_(x, y)


def full_adder_a(b: Builder, x: int, y: int, c: int) -> tuple[int, int]:
    """(sum, carry), 5 gates of which 2 AND: s = x^y^c, c' = c(x^y) + xy (never both, so the + is a XOR)."""
    t = b.xor(x, y)
    return b.xor(t, c), b.xor(b.and_(c, t), b.and_(x, y))


def full_adder_b(b: Builder, x: int, y: int, c: int) -> tuple[int, int]:
    """(sum, carry), 5 gates of which 1 AND: t = x^c, u = y^c, s = t^y, c' = c ^ tu."""
    t, u = b.xor(x, c), b.xor(y, c)
    return b.xor(t, y), b.xor(c, b.and_(t, u))


def majority(b: Builder, x: int, y: int, c: int) -> int:
    """1 where at least two of three bits are: one gate on engines that have it, 4 two-input gates here."""
    return b.xor(c, b.and_(b.xor(x, c), b.xor(y, c)))


def full_adder_m(b: Builder, x: int, y: int, c: int) -> tuple[int, int]:
    """(sum, carry) as two XORs and a majority; 3 gates where a majority gate exists."""
    return b.xor(b.xor(x, y), c), majority(b, x, y, c)


def full_adder_p(x: int, y: int, c: int) -> tuple[int, int]:
    """(sum, carry) for lookup engines: u = x + y + c is a free sum in 0..3, then two lookups in place of 5 gates."""
    u = x + y + c
    return (0, 1, 0, 1)[u], (0, 0, 1, 1)[u]


def ripple(
    b: Builder, x: Word, y: Word, carry: int = FALSE, *, width: int | None = None, adder: FullAdder = full_adder_b
) -> Word:
    """X + y + carry in ``width`` bits (one more than the longer word if None).

    Two full words of n bits and no carry in: 2 + 5 (n - 1) = 5n - 3 gates.
    """
    full = max(len(x), len(y)) + 1
    width = full if width is None else width
    out: Word = []
    for i in range(width):
        s, carry = adder(b, x[i] if i < len(x) else FALSE, y[i] if i < len(y) else FALSE, carry)
        out.append(s)
    return out


def extend(x: Word, width: int) -> Word:
    """A two's-complement word in more bits (or in fewer, modulo 2^width)."""
    return x[:width] if width <= len(x) else x + [x[-1]] * (width - len(x))


def complement(x: Word) -> Word:
    """Every bit inverted: free."""
    return [w ^ 1 for w in x]
