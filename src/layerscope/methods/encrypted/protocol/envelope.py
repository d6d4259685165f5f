"""The bytes that travel and the bytes that rest: a public, versioned header, a checksum, a payload. No pickle.

::

    "LSHE"  format (u16)  header length (u32)  header (JSON)  payload

The header names the kind, the network (fingerprint of its integers), the key (hash of the public evaluation key), the
engine, shapes, and the payload's length; ``digest`` is SHA-256 over the rest of the header and the payload. It finds
damage and mix-ups; it authenticates nobody.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from layerscope.methods.encrypted.errors import EnvelopeError, KeyMismatchError

Kind = Literal["request", "answer", "evalkeys", "secret", "server", "client"]

MAGIC = b"LSHE"
FORMAT = 2
_START = struct.Struct(">4sHI")


@dataclass(frozen=True)
class Header:
    """What everyone may read."""

    kind: Kind
    net: str
    """Fingerprint of the integer network."""
    key: str
    """Hash of the public evaluation key; empty for server and client files."""
    engine: str
    engine_version: str
    shape: tuple[int, ...] = ()
    """Of one sample."""
    samples: int = 0
    canary: bool = False
    """Whether the last sample is the client's canary."""
    request: str = ""
    """In an answer: the digest of the request that it belongs to."""
    length: int = 0
    digest: str = ""


def seal(header: Header, payload: bytes) -> bytes:
    """One envelope."""
    header = replace(header, length=len(payload), digest="")
    header = replace(header, digest=_digest(header, payload))
    text = json.dumps(asdict(header), sort_keys=True).encode()
    return b"".join((_START.pack(MAGIC, FORMAT, len(text)), text, payload))


def open_envelope(data: bytes, kind: Kind) -> tuple[Header, memoryview]:
    """Header and payload of an undamaged envelope of this kind.

    Raises:
        EnvelopeError: no envelope, cut short, damaged, of a newer format, or of another kind.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise EnvelopeError(f"expected the bytes of a {kind}, got {type(data).__name__}")
    view = memoryview(data)
    if len(view) < _START.size or bytes(view[:4]) != MAGIC:
        raise EnvelopeError(f"these {len(view)} bytes are no layerscope envelope; expected a {kind}")
    _, version, size = _START.unpack(view[: _START.size])
    if version > FORMAT:
        raise EnvelopeError(f"this envelope has format {version}, this layerscope reads {FORMAT}; upgrade it")
    if version < FORMAT:
        raise EnvelopeError(f"this envelope has format {version}, this layerscope reads {FORMAT}; make it again")
    body = view[_START.size :]
    if len(body) < size:
        raise EnvelopeError(f"this {kind} is cut short inside its header; send or copy it again")
    try:
        raw = json.loads(bytes(body[:size]))
        header = Header(**{**raw, "shape": tuple(raw["shape"])})
        if any(type(getattr(header, f.name)) is not type(f.default) for f in fields(header)[5:]) or not all(
            isinstance(text, str)
            for text in (header.kind, header.net, header.key, header.engine, header.engine_version)
        ):
            raise TypeError("a field of the wrong type")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EnvelopeError(f"the header of this {kind} is damaged; send or copy it again") from error
    payload = body[size:]
    if header.kind != kind:
        raise EnvelopeError(f"expected a {kind}, got a {header.kind}; check the order of the arguments")
    if len(payload) != header.length:
        raise EnvelopeError(
            f"this {kind} has {len(payload)} of {header.length} payload bytes: cut short or overlong; send it again"
        )
    if _digest(replace(header, digest=""), payload) != header.digest:
        raise EnvelopeError(f"the checksum of this {kind} does not match: it was damaged on its way; send it again")
    return header, payload


def read(path: str | Path, kind: Kind) -> tuple[Header, memoryview]:
    """The envelope in a file.

    Raises:
        EnvelopeError: no such file, or not an undamaged envelope of this kind.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EnvelopeError(f"cannot read the {kind} file {path}: {error.strerror or error}") from error
    return open_envelope(data, kind)


def _digest(header: Header, payload: bytes | memoryview) -> str:
    digest = hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()


def same_net(header: Header, net: str, what: str) -> None:
    """Raise KeyMismatchError unless ``header`` belongs to this network."""
    if header.net != net:
        raise KeyMismatchError(
            f"this {what} was made for the network {header.net[:12]}, not for {net[:12]}; use the client, keys and "
            "server of one compilation"
        )


def same_engine(header: Header, engine: str, version: str, what: str) -> None:
    """Raise EnvelopeError unless ``header`` was made by the same engine and version."""
    if (header.engine, header.engine_version) != (engine, version):
        raise EnvelopeError(
            f"this {what} was made with {header.engine} {header.engine_version}, here is {engine} {version}; "
            "use the same engine and version on both sides"
        )


def key_id(evaluation: bytes | memoryview) -> str:
    """Name of a key pair: SHA-256 of its public evaluation key."""
    return hashlib.sha256(evaluation).hexdigest()


def pack(parts: list[bytes]) -> bytes:
    """Several byte strings as one, each with its length before it."""
    return b"".join(x for part in parts for x in (struct.pack(">Q", len(part)), part))


def unpack(data: bytes | memoryview) -> list[bytes]:
    """The byte strings of :func:`pack`.

    Raises:
        EnvelopeError: the lengths do not add up.
    """
    parts, view = [], memoryview(data)
    while len(view):
        size = struct.unpack(">Q", view[:8])[0] if len(view) >= 8 else -1
        if size < 0 or len(view) < 8 + size:
            raise EnvelopeError("the parts of this payload do not add up; send it again")
        parts.append(bytes(view[8 : 8 + size]))
        view = view[8 + size :]
    return parts
