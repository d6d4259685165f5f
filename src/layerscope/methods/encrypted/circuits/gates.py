"""Two-input gates as data: a builder that folds constants and shares equal gates, and the circuit it leaves.

A wire is an integer: 0 and 1 are the constants, 2k and 2k + 1 a signal and its complement. NOT is therefore free and
never counted, as in every gate-bootstrapping scheme. XOR, AND are the only gates; OR is an AND of complements.
Folding ``x and x`` is not optional: engines refuse a gate whose two inputs are the same ciphertext.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FALSE, TRUE = 0, 1
Word = list[int]
"""Wires of one number, least significant bit first."""


class Builder:
    """Grows one circuit gate by gate."""

    def __init__(self) -> None:
        self.inputs = 0
        self._ops: list[bool] = []  # True: AND, False: XOR
        self._left: list[int] = []
        self._right: list[int] = []
        self._known: dict[tuple[bool, int, int], int] = {}
        #: AND-depth and gate-depth of every signal: for choices such as "earliest first"
        self.and_depth: list[int] = [0]
        self.gate_depth: list[int] = [0]

    def input(self, and_depth: int = 0) -> int:
        """A new input bit, known to arrive at ``and_depth``."""
        assert not self._ops, "inputs come before gates"
        self.inputs += 1
        self.and_depth.append(and_depth)
        self.gate_depth.append(0)
        return 2 * self.inputs

    def word(self, bits: int) -> Word:
        """New input bits, least significant first."""
        return [self.input() for _ in range(bits)]

    def xor(self, x: int, y: int) -> int:
        """Exclusive or; complements move to the output, so that equal gates meet."""
        flip = (x ^ y) & 1
        x, y = x & ~1, y & ~1
        if x == y:
            return flip
        if x == 0:
            return y | flip
        if y == 0:
            return x | flip
        return self._gate(False, x, y) | flip

    def and_(self, x: int, y: int) -> int:
        """And."""
        if x == 0 or y == 0 or x == y ^ 1:
            return FALSE
        if x == 1 or x == y:
            return y
        if y == 1:
            return x
        return self._gate(True, x, y)

    def or_(self, x: int, y: int) -> int:
        """Or: one gate, an AND with three free complements."""
        return self.and_(x ^ 1, y ^ 1) ^ 1

    def _gate(self, is_and: bool, x: int, y: int) -> int:
        if x > y:
            x, y = y, x
        key = (is_and, x, y)
        found = self._known.get(key)
        if found is not None:
            return found
        self._ops.append(is_and)
        self._left.append(x)
        self._right.append(y)
        a, b = x >> 1, y >> 1
        ands, gates = self.and_depth, self.gate_depth
        ands.append(max(ands[a], ands[b]) + is_and)
        gates.append(max(gates[a], gates[b]) + 1)
        wire = 2 * (self.inputs + len(self._ops))
        self._known[key] = wire
        return wire

    def arrival(self, wire: int) -> int:
        """AND-depth at which a wire is ready."""
        return self.and_depth[wire >> 1]

    def build(self, outputs: Sequence[int]) -> Circuit:
        """The circuit of these outputs, without gates that none of them needs."""
        first = self.inputs + 1
        live = np.zeros(first + len(self._ops), bool)
        for wire in outputs:
            live[wire >> 1] = True
        for gate in range(len(self._ops) - 1, -1, -1):
            if live[first + gate]:
                live[self._left[gate] >> 1] = True
                live[self._right[gate] >> 1] = True
        kept = np.flatnonzero(live[first:])
        number = np.zeros(len(live), np.int64)
        number[:first] = np.arange(first)
        number[first + kept] = first + np.arange(len(kept))

        def renamed(wires: Sequence[int]) -> NDArray[np.int64]:
            w = np.asarray(wires, np.int64).reshape(-1)
            return np.asarray(2 * number[w >> 1] + (w & 1), np.int64)

        return Circuit(
            self.inputs,
            np.asarray(self._ops, bool)[kept],
            renamed([self._left[k] for k in kept]),
            renamed([self._right[k] for k in kept]),
            renamed(outputs),
        )


@dataclass(frozen=True)
class Circuit:
    """Gates in an order in which each reads only earlier ones; signal 0 is the constant false."""

    inputs: int
    is_and: NDArray[np.bool_]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    outputs: NDArray[np.int64]

    @property
    def gates(self) -> int:
        """Two-input gates; NOT is free."""
        return len(self.is_and)

    @property
    def ands(self) -> int:
        """AND gates (an OR is one)."""
        return int(self.is_and.sum())

    def depths(self, arrivals: NDArray[np.int64] | None = None, *, ands_only: bool = True) -> NDArray[np.int64]:
        """Depth of every output bit: [outputs, ...] for arrivals [inputs, ...] (zeros if None).

        ``ands_only`` counts AND gates on the longest path (AND-depth), else every gate (gate-depth).
        """
        arrivals = np.zeros(self.inputs, np.int64) if arrivals is None else arrivals
        depth = np.zeros((1 + self.inputs + self.gates, *arrivals.shape[1:]), np.int64)
        depth[1 : 1 + self.inputs] = arrivals
        for targets, op, left, right in self.schedule:
            step = int(op) if ands_only else 1
            np.maximum(depth[left >> 1], depth[right >> 1], out=depth[targets])
            depth[targets] += step
        return np.asarray(depth[self.position[self.outputs >> 1]], np.int64)

    @property
    def and_depth(self) -> int:
        """AND gates on the longest path."""
        return int(self.depths().max(initial=0))

    @property
    def gate_depth(self) -> int:
        """Gates on the longest path."""
        return int(self.depths(ands_only=False).max(initial=0))

    @cached_property
    def _levels(self) -> tuple[NDArray[np.int64], list[tuple[slice, bool, NDArray[np.int64], NDArray[np.int64]]]]:
        """Gates regrouped so that one numpy call evaluates all gates of one level and kind."""
        first = 1 + self.inputs
        level = np.zeros(first + self.gates, np.int64)
        left, right = self.left >> 1, self.right >> 1
        for gate in range(self.gates):
            level[first + gate] = 1 + max(level[left[gate]], level[right[gate]])
        key = 2 * level[first:] + self.is_and
        order = np.argsort(key, kind="stable")
        position = np.arange(first + self.gates)
        position[first + order] = first + np.arange(self.gates)
        edges = np.flatnonzero(np.diff(key[order])) + 1
        groups = []
        for part in np.split(order, edges) if self.gates else []:
            start = int(position[first + part[0]])
            x, y = self.left[part], self.right[part]
            groups.append(
                (
                    slice(start, start + len(part)),
                    bool(self.is_and[part[0]]),
                    2 * position[x >> 1] + (x & 1),
                    2 * position[y >> 1] + (y & 1),
                )
            )
        return position, groups

    @property
    def schedule(self) -> list[tuple[slice, bool, NDArray[np.int64], NDArray[np.int64]]]:
        """(target signals, is AND, left wires, right wires) by level."""
        return self._levels[1]

    @property
    def position(self) -> NDArray[np.int64]:
        """Where each signal stands in the order of :attr:`schedule`."""
        return self._levels[0]
