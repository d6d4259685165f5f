"""Bit-sliced evaluation: 64 samples ride in every machine word, one numpy call does a whole level of equal gates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerscope.methods.encrypted.circuits.gates import Circuit

Words = NDArray[np.uint64]

#: Bytes of signal memory that one pass may use: about a second-level cache, beyond which memory is the limit.
_CACHE = 1 << 20


def evaluate(circuit: Circuit, inputs: Words) -> Words:
    """Output bits [outputs, W] for input bits [inputs, W]; each word carries 64 samples."""
    lanes = inputs.shape[1]
    out = np.empty((len(circuit.outputs), lanes), np.uint64)
    signals = 1 + circuit.inputs + circuit.gates
    chunk = max(8, _CACHE // (8 * signals))
    for start in range(0, lanes, chunk):
        stop = min(start + chunk, lanes)
        out[:, start:stop] = _pass(circuit, inputs[:, start:stop])
    return out


def _pass(circuit: Circuit, inputs: Words) -> Words:
    values = np.zeros((1 + circuit.inputs + circuit.gates, inputs.shape[1]), np.uint64)
    values[1 : 1 + circuit.inputs] = inputs
    for targets, is_and, left, right in circuit.schedule:
        x, y = _wires(values, left), _wires(values, right)
        (np.bitwise_and if is_and else np.bitwise_xor)(x, y, out=values[targets])
    return _wires(values, 2 * circuit.position[circuit.outputs >> 1] + (circuit.outputs & 1))


def _wires(values: Words, wires: NDArray[np.int64]) -> Words:
    taken = np.asarray(values[wires >> 1], np.uint64)
    flipped = np.flatnonzero(wires & 1)
    if flipped.size:
        taken[flipped] = ~taken[flipped]
    return taken


def pack(numbers: NDArray[np.int64], bits: int) -> Words:
    """Integers [samples] to bit planes [bits, ceil(samples / 64)]; negative numbers as two's complement."""
    return np.asarray(pack_rows(numbers[None], bits)[0], np.uint64)


def pack_rows(numbers: NDArray[np.int64], bits: int) -> Words:
    """Integers [rows, samples] to bit planes [rows, bits, ceil(samples / 64)]."""
    rows, samples = numbers.shape
    planes = ((numbers[:, None, :] >> np.arange(bits)[:, None]) & 1).astype(np.uint8)
    packed = np.packbits(planes, axis=2, bitorder="little")
    whole = np.zeros((rows, bits, 8 * -(-samples // 64)), np.uint8)
    whole[:, :, : packed.shape[2]] = packed
    return np.asarray(whole.view("<u8"), np.uint64)


def unpack(planes: Words, samples: int, *, signed: bool) -> NDArray[np.int64]:
    """Bit planes [bits, W] back to integers [samples]."""
    if planes.shape[0] == 0:
        return np.zeros(samples, np.int64)
    raw = np.ascontiguousarray(planes.astype("<u8")).view(np.uint8)
    bits = np.unpackbits(raw, axis=1, bitorder="little", count=samples).astype(np.int64)
    weights = np.int64(1) << np.arange(planes.shape[0], dtype=np.int64)
    if signed:
        weights[-1] = -weights[-1]
    return np.asarray(weights @ bits, np.int64)
