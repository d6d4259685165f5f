"""``plain`` and ``circuit`` behind the client/server verbs: the whole protocol without an engine, and without secrecy.

For rehearsals and tests. Codes travel in the clear; keys are random bytes that only name a client.
"""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version

import numpy as np

from layerscope.methods.encrypted.backends.circuit import CircuitNet
from layerscope.methods.encrypted.backends.engine import Facts, Program
from layerscope.methods.encrypted.backends.serial import (
    array_from_bytes,
    array_to_bytes,
    graph_from_bytes,
    graph_to_bytes,
)
from layerscope.methods.encrypted.errors import EnvelopeError
from layerscope.methods.encrypted.graph import Graph, Ints

_NOTE = "nothing is encrypted: codes travel in the clear"


class ClearEngine:
    """An engine that keeps no secret: ``plain`` runs integers, ``circuit`` runs every gate."""

    def __init__(self, name: str) -> None:
        self.name = name

    def version(self) -> str:
        """Layerscope's own version."""
        return version("layerscope")

    def check(self, graph: Graph) -> None:
        """Every integer network is fine."""

    def compile(self, graph: Graph, security: int, max_failure: float) -> Program:
        """The graph itself; the client gets nothing but its side of the envelopes."""
        return Program(graph_to_bytes(graph), b"", Facts(0, 0.0, notes=(_NOTE,)))

    def client(self, payload: bytes) -> ClearClient:
        """A client whose key is a name."""
        return ClearClient()

    def server(self, payload: bytes) -> ClearServer:
        """A server that computes in the clear."""
        return ClearServer(graph_from_bytes(payload), gates=self.name == "circuit")


class ClearClient:
    """A key that encrypts nothing."""

    def __init__(self) -> None:
        self._secret = b""

    def keygen(self) -> None:
        """Random bytes."""
        self._secret = os.urandom(32)

    def secret(self) -> bytes:
        """The random bytes."""
        return self._secret

    def evaluation(self) -> bytes:
        """Their hash."""
        return hashlib.sha256(b"layerscope rehearsal" + self._secret).digest()

    def restore(self, secret: bytes) -> None:
        """Take the random bytes."""
        self._secret = secret

    def encrypt(self, codes: Ints) -> bytes:
        """The codes as they are."""
        return array_to_bytes(codes)

    def decrypt(self, answer: bytes) -> Ints:
        """The answer as it is."""
        return array_from_bytes(answer).reshape(-1)


class ClearServer:
    """Computes the network on codes in the clear."""

    def __init__(self, graph: Graph, *, gates: bool) -> None:
        self.graph = graph
        self._circuit = CircuitNet(graph) if gates else None

    def run(self, sample: bytes, evaluation: bytes, key: str) -> bytes:
        """One sample."""
        codes = array_from_bytes(sample)[None]
        source = self.graph.input
        if codes.shape[1:] != source.shape or codes.min() < 0 or codes.max() >= 2**source.bits:
            raise EnvelopeError("these bytes hold no codes of this network; encrypt with its client")
        if self._circuit is not None:
            return array_to_bytes(self._circuit.run(codes)[0])
        import torch

        from layerscope.methods.encrypted import plain

        return array_to_bytes(np.asarray(plain.run(self.graph, torch.from_numpy(codes)).numpy()[0], np.int64))
