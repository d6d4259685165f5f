"""One output unit as a circuit: which input bits enter with which shift and sign, and the exact bounds of the sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerscope.methods.encrypted.circuits.accumulators import Accumulator, Term, accumulate, tree_gates
from layerscope.methods.encrypted.circuits.gates import Builder, Circuit, Word
from layerscope.methods.encrypted.graph import width_of


@dataclass(frozen=True)
class Tap:
    """One summand: ``weight * code`` with the code in [lo, hi]; ``lost`` low bits of ``code << e`` are dropped."""

    weight: int
    """0 or a signed power of two."""
    lo: int
    hi: int
    lost: int = 0

    @property
    def exponent(self) -> int:
        """E of weight = +-2^e."""
        return abs(self.weight).bit_length() - 1

    @property
    def width(self) -> int:
        """Bits of the code."""
        return width_of(self.lo, self.hi)

    def value(self, code: int) -> int:
        """The summand for one code: truncation rounds the magnitude's shift towards minus infinity, sign after."""
        size = (code << self.exponent) >> self.lost if self.weight else 0
        return size if self.weight > 0 else -size


def neuron(taps: Sequence[Tap], bias: int = 0, kind: Accumulator = "csa") -> Circuit:
    """``sum of taps + bias`` as a circuit; its inputs are the codes' bits, tap by tap, least significant first."""
    b = Builder()
    words = [b.word(t.width) for t in taps]
    lo, hi = interval(taps, bias)
    return b.build(accumulate(b, terms(taps, words), bias, lo, hi, kind))


def tree_costs(taps: Sequence[Tap], bias: int, kinds: Sequence[Accumulator]) -> dict[Accumulator, int]:
    """Gates of ``neuron(taps, bias, kind)`` for the accumulators that are trees, without building any."""
    parts: dict[Tap, list[Term]] = {}
    for tap in set(taps):
        word = [2 * i + 2 for i in range(tap.width)]
        parts[tap] = [replace(t, word=tuple(2 * i + 2 for i in range(len(t.word)))) for t in terms([tap], [word])]
    ends = [(tap.value(tap.lo), tap.value(tap.hi), n) for tap, n in Counter(taps).items()]
    lo, hi = (bias + sum(n * pick(a, z) for a, z, n in ends) for pick in (min, max))
    leaves = [term for tap in taps for term in parts[tap]]
    return {kind: tree_gates(leaves, bias, lo, hi, kind) for kind in kinds}


def interval(taps: Sequence[Tap], bias: int = 0) -> tuple[int, int]:
    """Exact smallest and largest value of the sum."""
    ends = [(t.value(t.lo), t.value(t.hi)) for t in taps]
    return bias + sum(min(e) for e in ends), bias + sum(max(e) for e in ends)


def terms(taps: Sequence[Tap], words: Sequence[Word]) -> list[Term]:
    """Unsigned terms of all taps; the sign bit of a signed code is a term of its own with the opposite sign."""
    out: list[Term] = []
    for tap, word in zip(taps, words, strict=True):
        if tap.weight == 0:
            continue
        exponent, wires = tap.exponent - tap.lost, list(word)
        if exponent < 0:
            wires, exponent = wires[-exponent:], 0
            if not wires and tap.lo < 0:
                wires = [word[-1]]  # a negative code shifted right for ever is -1
        if not wires:
            continue
        sign = 1 if tap.weight > 0 else -1
        if tap.lo >= 0:
            top = tap.hi >> max(0, tap.lost - tap.exponent)
            out.append(Term(tuple(wires), exponent, sign, max(1, top)))
            continue
        if len(wires) > 1:
            out.append(Term(tuple(wires[:-1]), exponent, sign, (1 << (len(wires) - 1)) - 1))
        out.append(Term((wires[-1],), exponent + len(wires) - 1, -sign, 1))
    return out
