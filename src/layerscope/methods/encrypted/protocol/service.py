"""A small server and client over loopback HTTP; the serving process sees ciphertexts and public keys only.

``POST /keys`` takes an evaluation key, ``POST /run`` a request, ``GET /`` names the network. Answers to bad requests
are 400 with one sentence; nothing that depends on a decryption ever comes back here.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from layerscope.errors import LayerscopeError
from layerscope.methods.encrypted.errors import EncryptedError, EnvelopeError, KeyMismatchError
from layerscope.methods.encrypted.protocol.envelope import open_envelope
from layerscope.methods.encrypted.protocol.server import Server

#: Evaluation keys of real networks reach gigabytes; a body beyond this is refused unread.
MAX_BODY = 16 << 30


class Service(HTTPServer):
    """One network behind one address; evaluation keys are kept in memory by their name.

    Args:
        server: what answers; it has no secret key.
        host: loopback unless said otherwise: there is no transport security here.
        port: 0 picks a free one; see :attr:`port`.
        keep: evaluation keys that are kept; the oldest goes first.
    """

    def __init__(self, server: Server, host: str = "127.0.0.1", port: int = 0, keep: int = 2) -> None:
        super().__init__((host, port), _Handler)
        self.network, self.keep = server, keep
        self.keys: dict[str, bytes] = {}

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Service
    #: Seconds without a byte after which a connection is closed: one stalled client must not stop the others.
    timeout = 60

    def do_GET(self) -> None:  # the name is http.server's
        net = self.server.network
        about = {"net": net.net, "engine": net.engine, "engine_version": net.engine_version, "selftest": net.selftest}
        self._reply(200, json.dumps(about).encode(), "application/json")

    def do_POST(self) -> None:  # the name is http.server's
        try:
            body = self._body()
            if self.path == "/keys":
                self._reply(200, self._keep(body))
            elif self.path == "/run":
                header, _ = open_envelope(body, "request")
                if header.key not in self.server.keys:
                    raise KeyMismatchError(f"no evaluation key {header.key[:12]} here; POST it to /keys first")
                self._reply(200, self.server.network.run(body, self.server.keys[header.key]))
            else:
                self._reply(404, b"POST /keys or /run")
        except LayerscopeError as error:
            self._reply(400, str(error).encode())
        except OSError:
            self.close_connection = True  # the client went away; nothing can be said to it

    def _keep(self, body: bytes) -> bytes:
        name = self.server.network.accepts(body)
        keys = self.server.keys
        keys.pop(name, None)
        keys[name] = body
        while len(keys) > self.server.keep:
            keys.pop(next(iter(keys)))
        return name.encode()

    def _body(self) -> bytes:
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            raise EnvelopeError("the request has no Content-Length") from None
        if not 0 <= size <= MAX_BODY:
            raise EnvelopeError(f"a body of {size} bytes is refused")
        return self.rfile.read(size)

    def _reply(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: request sizes and times are nobody's business by default."""


def post(host: str, port: int, path: str, body: bytes, timeout: float = 3600) -> bytes:
    """One POST to a :class:`Service`.

    Raises:
        EncryptedError: the service cannot be reached or refuses; its sentence is passed on.
    """
    connection = HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        data = response.read()
    except OSError as error:
        raise EncryptedError(
            f"no service at {host}:{port} ({error}); start one with  layerscope encrypted serve"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise EncryptedError(f"the service refused: {data.decode(errors='replace')}")
    return data
