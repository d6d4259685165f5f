"""Leveled (bootstrapping-free) evaluation as an analysis: where it stops being possible, never a way to run.

In leveled TFHE a product is asymmetric: one side, the selector, must be a fresh GSW-type ciphertext, and the output is
of the other type. A bit that gates computed can select again only after conversion; keeping everything in GSW form lets
it, at the price of multiplying the noise variance by about 2 l N B^2 / 12 at every nesting. So a circuit has a
*nesting* depth, and a parameter set a budget of it.

Source: the noise formula is the standard one for external products (TFHE, Chillotti et al.); the paper (arXiv
1906.00148) assumes that leveled gates compose freely, which does not follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layerscope._show import Shown
from layerscope.methods.encrypted.circuits.gates import Circuit


@dataclass(frozen=True)
class Parameters:
    """A ring GSW parameter set: degree N, l digits of base B, torus noise alpha (standard deviation)."""

    n: int = 1024
    digits: int = 3
    base_bits: int = 7
    noise: float = 2.0**-26
    """2^-26 at N = 1024 is the 128-bit choice of the TFHE library's 2020 revision; the paper's 3.29e-10 is below it."""

    def chain_std(self, depth: int) -> float:
        """Noise after ``depth`` products with fresh selectors, std on the torus; a bit at 1/8 decodes below 1/16.

        var = alpha^2 + d [ 2 l N (B^2 / 12) alpha^2 + (1 + N / 2) B^(-2 l) / 12 ]: linear in d.
        """
        base = 2.0**self.base_bits
        fresh = 2 * self.digits * self.n * (base**2 / 12) * self.noise**2
        rounding = (1 + self.n / 2) * base ** (-2 * self.digits) / 12
        return math.sqrt(self.noise**2 + depth * (fresh + rounding))

    def nested_std(self, nesting: int) -> float:
        """Noise when the selector itself went through ``nesting`` products before; 0 is a fresh selector."""
        base = 2.0**self.base_bits
        grow = 2 * self.digits * self.n * (base**2 / 12)
        rounding = (1 + self.n / 2) * base ** (-2 * self.digits) / 12
        var = self.noise**2
        for _ in range(nesting + 1):
            var = self.noise**2 + grow * var + rounding
        return math.sqrt(var)

    def nesting_budget(self, limit: float = 1 / 16, sigmas: float = 4.0) -> int:
        """Largest nesting that still decodes with ``sigmas`` to spare; -1 if not even a fresh selector does."""
        nesting = -1
        while nesting < 64 and sigmas * self.nested_std(nesting + 1) < limit:
            nesting += 1
        return nesting


@dataclass(frozen=True)
class Leveled(Shown):
    """Whether a circuit can be evaluated without bootstrapping under a nesting budget."""

    feasible: bool
    budget: int
    nesting: int
    """Deepest nesting of computed selectors; 0 means that every AND has a fresh input bit to select by."""
    first_infeasible_gate: int | None
    """Number of the first AND (in evaluation order) whose both inputs exceed the budget."""
    first_infeasible_depth: int | None
    """Its AND-depth: how far into the circuit one gets."""
    bootstraps_needed: int
    """Selectors that must be refreshed if each is refreshed only when the budget is spent."""


def analyse(circuit: Circuit, budget: int = 0) -> Leveled:
    """Nesting of every gate: XOR is a linear sum, AND takes the less nested input as its selector.

    n(x ^ y) = max(n(x), n(y));  n(x y) = max(n(data), n(selector) + 1); infeasible where n(selector) > budget.

    Args:
        circuit: its inputs are fresh.
        budget: how deeply computed bits may select: 0 as in leveled TFHE, more with GSW products
            (:meth:`Parameters.nesting_budget`).
    """
    signals = 1 + circuit.inputs + circuit.gates
    free, kept = np.zeros(signals, np.int64), np.zeros(signals, np.int64)
    depth = np.zeros(signals, np.int64)
    first: int | None = None
    bootstraps = 0
    for gate in range(circuit.gates):
        x, y = int(circuit.left[gate] >> 1), int(circuit.right[gate] >> 1)
        out = 1 + circuit.inputs + gate
        is_and = bool(circuit.is_and[gate])
        depth[out] = max(depth[x], depth[y]) + is_and
        if not is_and:
            free[out], kept[out] = max(free[x], free[y]), max(kept[x], kept[y])
            continue
        if min(free[x], free[y]) > budget and first is None:
            first = gate
        free[out] = max(max(free[x], free[y]), min(free[x], free[y]) + 1)
        selector = x if kept[x] <= kept[y] else y
        if kept[selector] > budget:
            bootstraps += 1
            kept[selector] = 0
        kept[out] = max(kept[x], kept[y], kept[selector] + 1)
    where = None if first is None else int(depth[1 + circuit.inputs + first])
    selects = [
        int(min(free[circuit.left[g] >> 1], free[circuit.right[g] >> 1])) for g in np.flatnonzero(circuit.is_and)
    ]
    return Leveled(first is None, budget, max(selects, default=0), first, where, bootstraps)
