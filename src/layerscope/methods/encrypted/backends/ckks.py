"""Polynomial baseline on TenSEAL (CKKS): what one gets with squares in place of ReLU and averages in place of max-pool.

Between two squares a network is affine, so each stretch becomes one matrix product on a packed vector. Results are
approximate. For comparison only: it has none of the exact backends' checks.

Never send decrypted outputs, error flags or retries that depend on them back to the server: with approximate schemes
they can reveal the key (Li and Micciancio, EUROCRYPT 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.errors import MissingExtraError
from layerscope.methods.encrypted.errors import InputError, UnsupportedModuleError
from layerscope.methods.encrypted.floatgraph import FloatGraph, Step, evaluate
from layerscope.methods.encrypted.trace import trace

#: SEAL's bound on the coefficient modulus for 128-bit security, by ring degree.
_MODULUS_BITS = {4096: 109, 8192: 218, 16384: 438, 32768: 881}


class Square(nn.Module):
    """x^2: the activation that CKKS networks use in place of a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise square."""
        return x * x


@dataclass(frozen=True)
class Affine:
    """One stretch between squares: y = x @ matrix + bias."""

    matrix: Tensor
    """[inputs, outputs], float64."""
    bias: Tensor

    def with_one(self, *, last: bool) -> Tensor:
        """The same for vectors that end in a constant 1, which it keeps unless ``last``.

        TenSEAL's matrix product relies on copies of the vector in the free slots; a plain bias would be added to the
        first copy only, and the next product would be wrong without an error.
        """
        rows = torch.cat([self.matrix, self.bias[None]])
        if last:
            return rows
        one = torch.zeros(len(rows), 1, dtype=rows.dtype)
        one[-1] = 1.0
        return torch.cat([rows, one], 1)


class CkksNet:
    """A network of convolutions, batch norms, average pools, linear layers and :class:`Square`, under CKKS.

    Args:
        model: in evaluation mode.
        in_shape: (channels, height, width).
        scale_bits: precision of the fixed-point encoding.

    Raises:
        MissingExtraError: TenSEAL is not installed.
        UnsupportedModuleError: anything but sums, products by constants and squares, or too many squares for 128 bits.
    """

    def __init__(self, model: nn.Module, in_shape: Sequence[int], *, scale_bits: int = 40) -> None:
        self._ts = load_tenseal()
        self.stretches = stretches(trace(model, in_shape))
        self.in_shape, self.scale_bits = tuple(in_shape), scale_bits
        levels = 2 * len(self.stretches) - 1
        wanted = 120 + scale_bits * levels
        slots = 1 + max(max(s.matrix.shape) for s in self.stretches)
        degrees = [n for n, bits in _MODULUS_BITS.items() if bits >= wanted and n // 2 >= slots]
        if not degrees:
            raise UnsupportedModuleError(
                type(model).__name__,
                f"{len(self.stretches) - 1} squares need a modulus of {wanted} bits, above the 128-bit limit",
                "use fewer squares, a smaller scale_bits, or exact ReLU with the concrete backend",
            )
        self.degree, self.levels = degrees[0], levels
        self._secret: Any = None

    def __repr__(self) -> str:
        return f"CkksNet({len(self.stretches) - 1} squares, ring degree {self.degree}, keys hidden)"

    def keygen(self) -> None:
        """New keys for the client."""
        moduli = [60, *[self.scale_bits] * self.levels, 60]
        context = self._ts.context(self._ts.SCHEME_TYPE.CKKS, self.degree, -1, moduli)
        context.global_scale = 2.0**self.scale_bits
        context.generate_galois_keys()
        self._secret = context

    def public_context(self) -> bytes:
        """What the server needs: public, relinearisation and rotation keys."""
        self._keyed()
        return bytes(
            self._secret.serialize(
                save_public_key=True, save_secret_key=False, save_galois_keys=True, save_relin_keys=True
            )
        )

    def encrypt(self, x: Tensor) -> bytes:
        """One sample."""
        self._keyed()
        if tuple(x.shape) != self.in_shape or not bool(torch.isfinite(x).all()):
            raise InputError(f"expected one finite sample of shape {self.in_shape}, got {tuple(x.shape)}")
        return bytes(self._ts.ckks_vector(self._secret, [*x.flatten().tolist(), 1.0]).serialize())

    def run(self, context: bytes, sample: bytes) -> bytes:
        """The server's side: one sample under the client's public context."""
        vector = self._ts.ckks_vector_from(self._ts.context_from(context), sample)
        for i, stretch in enumerate(self.stretches):
            if i:
                vector = vector * vector
            vector = vector.mm(stretch.with_one(last=i == len(self.stretches) - 1).tolist())
        return bytes(vector.serialize())

    def decrypt(self, answer: bytes) -> Tensor:
        """Approximate logits of one sample."""
        self._keyed()
        return torch.tensor(self._ts.ckks_vector_from(self._secret, answer).decrypt())

    def _keyed(self) -> None:
        if self._secret is None:
            raise InputError("this network has no keys; call keygen()")


def load_tenseal() -> Any:
    """TenSEAL, or an error that names the extra."""
    if find_spec("tenseal") is None:
        raise MissingExtraError("tenseal", "encrypted", "the CKKS baseline")
    return import_module("tenseal")


def stretches(graph: FloatGraph) -> list[Affine]:
    """The affine maps between the squares of ``graph``.

    Raises:
        UnsupportedModuleError: a step that is neither affine nor a square, or a path around a square.
    """
    made: list[Affine] = []
    start = 0
    for index, step in enumerate(graph.steps):
        square = step.kind == "Square"
        if not square and step.op in ("relu", "sign", "maxpool", "opaque"):
            raise UnsupportedModuleError(
                step.name, f"{step.kind} is no polynomial", "use Square and average pools, or the concrete backend"
            )
        if any(i < start for i in step.inputs):
            raise UnsupportedModuleError(step.name, "reads around a square", "keep residual paths within a stretch")
        if square:
            made.append(_affine(graph.steps, start, step.inputs[0]))
            start = index
    made.append(_affine(graph.steps, start, len(graph.steps) - 1))
    return made


def _affine(steps: tuple[Step, ...], start: int, stop: int) -> Affine:
    """Push a basis through steps start+1 .. stop."""
    shape = steps[start].shape
    size = shape[0] * shape[1] * shape[2]
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().view(-1, *shape)
    values: dict[int, Tensor] = {start: basis}
    for index in range(start + 1, stop + 1):
        table = [values.get(i, basis) for i in range(index)]
        values[index] = evaluate(steps[index], table)
    out = values[stop].flatten(1)
    return Affine(out[1:] - out[0], out[0])
