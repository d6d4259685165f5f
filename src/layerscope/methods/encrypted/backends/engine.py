"""What an engine must do; everything else (envelopes, key ids, checks, canaries) is the same for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from layerscope._show import Shown
from layerscope.errors import LayerscopeError
from layerscope.methods.encrypted.graph import Graph, Ints


@dataclass(frozen=True)
class Support(Shown):
    """Whether an engine can evaluate a network, and if not, why."""

    backend: str
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Facts:
    """What compilation found out; sizes in bytes, zero where an engine does not say."""

    security_bits: int
    failure: float
    """Bound on the probability that an inference has any wrong bit."""
    bootstraps: int = 0
    bootstrap_key_bytes: int = 0
    keyswitch_key_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A compiled network: what the server keeps, what the client keeps (no weights), and the facts."""

    server: bytes = field(repr=False)
    client: bytes = field(repr=False)
    facts: Facts


class ClientSession(Protocol):
    """Holds the secret key of one client for one network."""

    def keygen(self) -> None:
        """Draw new keys."""

    def secret(self) -> bytes:
        """The secret key."""

    def evaluation(self) -> bytes:
        """The public evaluation key."""

    def restore(self, secret: bytes) -> None:
        """Take a secret key from its bytes."""

    def encrypt(self, codes: Ints) -> bytes:
        """One sample's codes [C, H, W]."""

    def decrypt(self, answer: bytes) -> Ints:
        """One sample's answer, flat."""


class ServerSession(Protocol):
    """Evaluates one network; never sees a secret key."""

    def run(self, sample: bytes, evaluation: bytes, key: str) -> bytes:
        """One sample under the evaluation key named ``key``."""


class Engine(Protocol):
    """A backend that compiles networks and opens both sides of them."""

    name: str

    def version(self) -> str:
        """Version of the engine's package; raises MissingExtraError where it is not installed."""

    def check(self, graph: Graph) -> None:
        """Raise an EncryptedError for a network that this engine cannot evaluate."""

    def compile(self, graph: Graph, security: int, max_failure: float) -> Program:
        """Compile a network that :meth:`check` accepts."""

    def client(self, payload: bytes) -> ClientSession:
        """The client's side of a compiled network."""

    def server(self, payload: bytes) -> ServerSession:
        """The server's side."""


def supports(engine: Engine, graph: Graph) -> Support:
    """Whether ``engine`` can evaluate ``graph``, as a value instead of an exception."""
    try:
        engine.version()
        engine.check(graph)
    except LayerscopeError as error:
        return Support(engine.name, False, str(error))
    return Support(engine.name, True)


def extremal_codes(graph: Graph, seed: int = 0, random: int = 4) -> list[Ints]:
    """All zero, all largest, and random codes: to compile on and to test with."""
    generator = np.random.default_rng(seed)
    shape, top = graph.input.shape, 2**graph.input.bits - 1
    drawn = [generator.integers(0, top + 1, shape).astype(np.int64) for _ in range(random)]
    return [np.zeros(shape, np.int64), np.full(shape, top, np.int64), *drawn]
