"""INSECURE laboratory: measures how noise grows in leveled products, to hold the formula of :mod:`leveled` against.

Nothing here encrypts anything of anyone: the generator is not cryptographic, the parameters are whatever was asked for,
and keys refuse to be written down. It exists so that the claim "a computed bit cannot select" can be checked.

Torus elements are 32-bit integers (value / 2^32). A GSW ciphertext of the bit m is a [2 l, 2, N] block: rows encrypt
zero and carry m B^-j on the diagonal; the external product with an RLWE ciphertext decomposes it into l base-B digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from layerscope.methods.encrypted.leveled import Parameters

INSECURE = "insecure laboratory: no secrecy, for measuring noise only"

Torus = NDArray[np.uint32]


@dataclass(frozen=True)
class NoiseMeasurement:
    """Predicted and measured noise, standard deviation on the torus."""

    depth: int
    predicted: float
    measured: float
    warning: str = INSECURE


class InsecureLab:
    """One secret of the laboratory and what can be measured under it.

    Args:
        parameters: ring degree, digits, base and noise.
        seed: of the non-cryptographic generator.
        batch: ciphertexts measured side by side; with N coefficients each, a few are plenty.
    """

    def __init__(self, parameters: Parameters, seed: int = 0, batch: int = 4) -> None:
        self.p, self.batch = parameters, batch
        self._rng = np.random.default_rng(seed)
        self._key = self._rng.integers(0, 2, parameters.n).astype(np.int64)
        # multiplication modulo X^N + 1 as a cyclic one on twisted coefficients
        self._twist = np.exp(1j * np.pi * np.arange(parameters.n) / parameters.n)

    def __repr__(self) -> str:
        return f"InsecureLab({INSECURE})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{INSECURE}; its keys are not to be stored")

    def chain(self, depth: int) -> NoiseMeasurement:
        """Noise after ``depth`` products of an encryption of zero with fresh selectors of the bit 1."""
        c = self._rlwe(self.batch)
        for _ in range(depth):
            c = self._external(self._gsw(1), c)
        return NoiseMeasurement(depth, self.p.chain_std(depth), self._std(c))

    def nested(self, nesting: int) -> NoiseMeasurement:
        """Noise of a product whose selector went through ``nesting`` products itself."""
        selector = self._gsw(1)
        for _ in range(nesting):
            selector = self._external(selector, self._gsw(1))  # GSW x GSW, row by row: a computed selector
        return NoiseMeasurement(nesting, self.p.nested_std(nesting), self._std(self._external(selector, self._rlwe(1))))

    def _rlwe(self, rows: int) -> Torus:
        """Encryptions of zero [rows, 2, N]."""
        n = self.p.n
        mask = self._rng.integers(0, 2**32, (rows, n), dtype=np.uint64).astype(np.uint32)
        noise = np.round(self._rng.normal(0, self.p.noise * 2**32, (rows, n))).astype(np.int64)
        body = self._multiply(self._key[None], mask) + noise
        return np.stack([mask, body.astype(np.uint32)], 1)

    def _gsw(self, bit: int) -> Torus:
        """[2 l, 2, N]."""
        p = self.p
        rows = self._rlwe(2 * p.digits)
        for j in range(p.digits):
            gadget = np.array([bit << (32 - p.base_bits * (j + 1))], np.uint32)
            rows[j, 0, :1] += gadget
            rows[p.digits + j, 1, :1] += gadget
        return rows

    def _external(self, gsw: Torus, rlwe: Torus) -> Torus:
        """GSW [2 l, 2, N] times RLWE [rows, 2, N]."""
        p = self.p
        digits = np.concatenate([self._decompose(rlwe[:, 0]), self._decompose(rlwe[:, 1])], 1)  # [rows, 2 l, N]
        left, right = self._forward(digits), self._forward(gsw.astype(np.int32).astype(np.float64))
        out = np.einsum("rkn,kcn->rcn", left, right)
        assert digits.shape[1] == 2 * p.digits
        return self._back(out).astype(np.uint32)

    def _decompose(self, x: Torus) -> NDArray[np.int64]:
        """L signed digits of base B, the nearest to x: [rows, l, N]."""
        p = self.p
        base, total = 1 << p.base_bits, p.base_bits * p.digits
        centre = sum((base // 2) << (32 - p.base_bits * (j + 1)) for j in range(p.digits))
        # ties go up or down at random: always up leaves a mean of half a unit, which adds up coherently along a chain
        # (19 % more noise after 1024 products at the smallest noise) and is not what the formula describes
        half = (1 << (31 - total)) - self._rng.integers(0, 2, x.shape, dtype=np.uint64)
        shifted = (x.astype(np.uint64) + np.uint64(centre) + half) & np.uint64(0xFFFFFFFF)
        parts = [
            ((shifted >> (32 - p.base_bits * (j + 1))) & (base - 1)).astype(np.int64) - base // 2
            for j in range(p.digits)
        ]
        return np.stack(parts, 1)

    def _multiply(self, small: NDArray[np.int64], torus: Torus) -> NDArray[np.int64]:
        """Product modulo X^N + 1; exact, because small times 32 bits times N stays below 2^53."""
        return self._back(self._forward(small) * self._forward(torus.astype(np.int32).astype(np.float64)))

    def _forward(self, x: NDArray[Any]) -> NDArray[np.complex128]:
        return np.asarray(np.fft.fft(x * self._twist, axis=-1), np.complex128)

    def _back(self, x: NDArray[np.complex128]) -> NDArray[np.int64]:
        real = np.fft.ifft(x, axis=-1) * self._twist.conj()
        return np.asarray(np.round(real.real).astype(np.int64) & 0xFFFFFFFF, np.int64)

    def _std(self, c: Torus) -> float:
        phase = c[:, 1].astype(np.int64) - self._multiply(self._key[None], c[:, 0])
        centred = ((phase + 2**31) & 0xFFFFFFFF) - 2**31
        return float(np.sqrt(np.mean((centred / 2**32) ** 2)))
