"""The server: weights in the clear, public evaluation keys, and no place for a secret key."""

from __future__ import annotations

from pathlib import Path

from layerscope._show import writable
from layerscope.methods.encrypted.backends.engine import ServerSession
from layerscope.methods.encrypted.backends.registry import engine as find_engine
from layerscope.methods.encrypted.errors import EnvelopeError, KeyMismatchError
from layerscope.methods.encrypted.protocol.envelope import (
    Header,
    key_id,
    open_envelope,
    pack,
    read,
    same_engine,
    same_net,
    seal,
    unpack,
)


class Server:
    """Answers requests for one compiled network.

    Honest but curious is what it is trusted to be: it learns shapes, widths, timing and the number of queries, not
    inputs, intermediates or answers. Nothing protects against a server that computes something else.
    """

    def __init__(self, payload: bytes, net: str, engine: str, engine_version: str, selftest: str = "") -> None:
        self.net, self.engine, self.engine_version = net, engine, engine_version
        self.selftest = selftest
        """What the self-test after compilation found; empty if it was not run."""
        self._payload = payload
        self._session: ServerSession | None = None

    def __repr__(self) -> str:
        return f"Server(net={self.net[:12]}, engine={self.engine}, selftest={self.selftest!r})"

    @classmethod
    def load(cls, path: str | Path) -> Server:
        """A server from the file that :meth:`save` wrote. The file may hold machine code: load only your own."""
        header, payload = read(path, "server")
        parts = unpack(payload)
        if len(parts) != 2:
            raise EnvelopeError("this server file holds no compiled network; compile and save it again")
        return cls(parts[0], header.net, header.engine, header.engine_version, parts[1].decode())

    def save(self, path: str | Path) -> Path:
        """Write the compiled network, weights included."""
        path = writable(path)
        header = Header("server", self.net, "", self.engine, self.engine_version)
        path.write_bytes(seal(header, pack([self._payload, self.selftest.encode()])))
        return path

    def run(self, request: bytes, evaluation_keys: bytes) -> bytes:
        """The answer to ``request`` under ``evaluation_keys``; both and the answer are envelopes.

        Raises:
            EnvelopeError: damage, another engine or version.
            KeyMismatchError: request, key and network that do not belong together.
        """
        asked, payload = open_envelope(request, "request")
        given, evaluation = open_envelope(evaluation_keys, "evalkeys")
        self._mine(asked, "request")
        self._own_key(given, evaluation)
        if asked.key != given.key:
            raise KeyMismatchError(
                f"the request was encrypted under the key {asked.key[:12]}, the evaluation key is {given.key[:12]}; "
                "send the evaluation key of the client that encrypted"
            )
        samples = unpack(payload)
        if len(samples) != asked.samples:
            raise EnvelopeError(
                f"the request announces {asked.samples} samples and holds {len(samples)}; send it again"
            )
        session = self._open()
        answers = [session.run(sample, bytes(evaluation), given.key) for sample in samples]
        header = Header(
            "answer",
            self.net,
            asked.key,
            self.engine,
            self.engine_version,
            asked.shape,
            len(answers),
            asked.canary,
            asked.digest,
        )
        return seal(header, pack(answers))

    def accepts(self, evaluation_keys: bytes) -> str:
        """The name of an evaluation key that fits this network.

        Raises:
            EnvelopeError: damage, another engine or version.
            KeyMismatchError: a key for another network, or under a false name.
        """
        header, evaluation = open_envelope(evaluation_keys, "evalkeys")
        self._own_key(header, evaluation)
        return header.key

    def _mine(self, header: Header, what: str) -> None:
        same_net(header, self.net, what)
        same_engine(header, self.engine, self.engine_version, what)

    def _own_key(self, header: Header, evaluation: memoryview) -> None:
        self._mine(header, "evaluation key")
        if key_id(evaluation) != header.key:
            raise KeyMismatchError("this evaluation key does not have the name its header claims; upload it again")

    def _open(self) -> ServerSession:
        if self._session is None:
            found = find_engine(self.engine)
            installed = found.version()
            if installed != self.engine_version:
                raise EnvelopeError(
                    f"this server was compiled with {self.engine} {self.engine_version}, installed is {installed}; "
                    "install that version or compile again"
                )
            self._session = found.server(self._payload)
        return self._session
