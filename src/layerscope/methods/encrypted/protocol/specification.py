"""What a client knows of a network: shapes, scales, a canary and its engine's payload. No weights."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from layerscope.methods.encrypted.backends.engine import extremal_codes
from layerscope.methods.encrypted.backends.serial import array_from_bytes, array_to_bytes
from layerscope.methods.encrypted.errors import EnvelopeError
from layerscope.methods.encrypted.graph import Floats, Graph, Ints
from layerscope.methods.encrypted.protocol.envelope import pack, unpack


@dataclass(frozen=True)
class ClientSpec:
    """Enough to encode, encrypt, decrypt and decode."""

    in_shape: tuple[int, int, int]
    in_bits: int
    in_scale: float
    in_offset: float
    out_shape: tuple[int, int, int]
    out_scale: Floats
    """[outputs], flat."""
    out_offset: Floats
    canary_codes: Ints
    canary_answer: Ints
    """The network's answer to ``canary_codes``, flat: one known pair, so it tells the client no more than a query."""
    engine_payload: bytes

    @classmethod
    def of(cls, graph: Graph, engine_payload: bytes, canary: tuple[Ints, Ints]) -> ClientSpec:
        """The client's share of ``graph``."""
        value, shape = graph.output, graph.ops[-1].shape
        area = shape[1] * shape[2]
        first = graph.values[0]
        return cls(
            graph.input.shape,
            graph.input.bits,
            float(first.scale[0]),
            float(first.offset[0]),
            shape,
            np.repeat(value.scale, area),
            np.repeat(value.offset, area),
            *canary,
            engine_payload,
        )

    def to_bytes(self) -> bytes:
        """JSON for the numbers, arrays and the engine's payload behind it."""
        text = {
            "in_shape": self.in_shape,
            "in_bits": self.in_bits,
            "in_scale": self.in_scale,
            "in_offset": self.in_offset,
            "out_shape": self.out_shape,
            "out_scale": self.out_scale.tolist(),
            "out_offset": self.out_offset.tolist(),
        }
        arrays = array_to_bytes(self.canary_codes), array_to_bytes(self.canary_answer)
        return pack([json.dumps(text, sort_keys=True).encode(), *arrays, self.engine_payload])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> ClientSpec:
        """The inverse of :meth:`to_bytes`.

        Raises:
            EnvelopeError: the bytes hold no client specification.
        """
        try:
            text, codes, answer, payload = unpack(data)
            raw = json.loads(text)
            shapes = {k: (raw[k][0], raw[k][1], raw[k][2]) for k in ("in_shape", "out_shape")}
            scales = {k: np.asarray(raw[k], np.float64) for k in ("out_scale", "out_offset")}
            return cls(
                shapes["in_shape"],
                raw["in_bits"],
                raw["in_scale"],
                raw["in_offset"],
                shapes["out_shape"],
                scales["out_scale"],
                scales["out_offset"],
                array_from_bytes(codes),
                array_from_bytes(answer),
                payload,
            )
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EnvelopeError("this client file holds no client specification") from error


def draw_canary(graph: Graph) -> Ints:
    """Random codes, the same for the same network."""
    return extremal_codes(graph, seed=int(graph.fingerprint[:8], 16), random=1)[-1]
