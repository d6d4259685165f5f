"""``compile``: an integer network in, a client and a server out, with a self-test between."""

from __future__ import annotations

import numpy as np
import torch

from layerscope.methods.encrypted import plain
from layerscope.methods.encrypted.backends.engine import Engine, Facts, Program, extremal_codes
from layerscope.methods.encrypted.backends.registry import engine as find_engine
from layerscope.methods.encrypted.errors import EngineError, QuantizationError
from layerscope.methods.encrypted.graph import Graph
from layerscope.methods.encrypted.network import QuantizedNet
from layerscope.methods.encrypted.protocol.client import Client
from layerscope.methods.encrypted.protocol.server import Server
from layerscope.methods.encrypted.protocol.specification import ClientSpec, draw_canary


class CompiledNet:
    """A network compiled for one engine; :meth:`client` and :meth:`server` part from here."""

    def __init__(self, graph: Graph, engine: Engine, program: Program) -> None:
        self.graph, self.engine = graph, engine
        self._program = program
        self._selftest = ""
        codes = draw_canary(graph)
        answer = plain.run(graph, torch.from_numpy(codes)[None])[0].numpy().reshape(-1)
        self._spec = ClientSpec.of(graph, program.client, (codes, answer))
        self._version = engine.version()

    @property
    def facts(self) -> Facts:
        """Bootstraps, key sizes and the failure bound that the engine reported."""
        return self._program.facts

    def __repr__(self) -> str:
        return f"CompiledNet({self.engine.name}, net={self.graph.fingerprint[:12]}, {self.facts})"

    def client(self) -> Client:
        """A new client without keys."""
        return Client(self._spec, self.graph.fingerprint, self.engine.name, self._version)

    def server(self) -> Server:
        """A server; it holds the result of the self-test, if one was run."""
        return Server(self._program.server, self.graph.fingerprint, self.engine.name, self._version, self._selftest)

    def selftest(self, n: int = 2, *, seed: int = 0) -> str:
        """Encrypt, run and decrypt both extremal inputs and ``n`` random ones; every bit must equal ``plain``.

        Raises:
            EngineError: one answer differs. Do not use this network with this engine.
        """
        client, server = self.client(), self.server()
        client.keygen()
        keys = client.evaluation_keys()
        for codes in extremal_codes(self.graph, seed, random=n):
            value = self.graph.values[0]
            x = codes * value.scale.reshape(-1, 1, 1) + value.offset.reshape(-1, 1, 1)
            answer = client.decrypt(server.run(client.encrypt(x[None], clip=True), keys), raw=True)
            expected = plain.run(self.graph, torch.from_numpy(codes)[None])
            if not np.array_equal(answer.numpy().reshape(-1), expected.numpy().reshape(-1)):
                raise EngineError(
                    f"the self-test failed: {self.engine.name} {self._version} computes this network wrongly; "
                    "do not use it, and report the network"
                )
        self._selftest = f"passed: {n + 2} inputs bit for bit on {self.engine.name} {self._version}"
        return self._selftest


def compile(
    qnet: QuantizedNet | Graph,
    backend: str = "auto",
    *,
    security: int = 128,
    max_failure: float = 2.0**-17,
    selftest: int | None = None,
) -> CompiledNet:
    """Compile an integer network for an engine.

    Args:
        qnet: what :func:`~layerscope.methods.encrypted.quantize` returned.
        backend: ``auto`` or ``concrete`` encrypt; ``plain`` and ``circuit`` rehearse the protocol in the clear.
        security: bits; the engine chooses its own parameters, none can be given here.
        max_failure: bound on the probability that one inference has any wrong bit.
        selftest: random inputs of a self-test right after compilation (:meth:`CompiledNet.selftest`); None skips it.

    Raises:
        MissingExtraError: the engine is not installed; the message has the command.
        QuantizationError: no integer network.
        WidthError: an accumulator too wide for the engine, with three remedies.
        EngineError: no such backend, or security below 128 bits.
    """
    if security < 128:
        raise EngineError(f"security must be at least 128 bits, got {security}")
    if not 0 < max_failure < 1:
        raise EngineError(f"max_failure is a probability between 0 and 1, got {max_failure!r}")
    found = find_engine(backend)
    found.version()
    graph = qnet.graph if isinstance(qnet, QuantizedNet) else qnet
    if not isinstance(graph, Graph):
        raise QuantizationError(f"expected an integer network, got {type(graph).__name__}; quantize() makes one")
    found.check(graph)
    made = CompiledNet(graph, found, found.compile(graph, security, max_failure))
    if selftest is not None:
        made.selftest(selftest)
    return made
