"""The client: holds the secret key, encodes, encrypts, decrypts, and checks every answer before it reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from layerscope._show import writable
from layerscope.methods.encrypted.backends.engine import ClientSession
from layerscope.methods.encrypted.backends.registry import engine as find_engine
from layerscope.methods.encrypted.errors import EnvelopeError, InputError, KeyFileError, KeyMismatchError
from layerscope.methods.encrypted.graph import Ints
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
from layerscope.methods.encrypted.protocol.specification import ClientSpec

if TYPE_CHECKING:
    from torch import Tensor


class Client:
    """One client of one compiled network.

    The secret key lives in this object and, if asked for, in one file of mode 0600; it is never printed, and nothing
    derived from a decryption goes back to a server: not an error flag, not a retry.
    """

    def __init__(self, spec: ClientSpec, net: str, engine: str, engine_version: str) -> None:
        self.spec, self.net = spec, net
        self.engine, self.engine_version = engine, engine_version
        self._session: ClientSession | None = None
        self._evaluation: bytes | None = None
        self._key = ""
        self.clipped = 0
        """Input values that ``encrypt(clip=True)`` saturated last time."""

    def __repr__(self) -> str:
        return f"Client(net={self.net[:12]}, engine={self.engine}, key={self._key[:12] or None})"

    # files

    @classmethod
    def load(cls, path: str | Path) -> Client:
        """A client from the file that :meth:`save` wrote; it has no keys yet."""
        header, payload = read(path, "client")
        return cls(ClientSpec.from_bytes(payload), header.net, header.engine, header.engine_version)

    def save(self, path: str | Path) -> Path:
        """Write the specification: shapes and scales, no weights and no keys."""
        path = writable(path)
        path.write_bytes(seal(self._header("client", key=""), self.spec.to_bytes()))
        return path

    def keygen(self, path: str | Path | None = None, *, overwrite: bool = False) -> None:
        """Draw new keys; with ``path`` write the secret there (mode 0600), the public key to ``path.evaluation``.

        Raises:
            KeyFileError: a file stands there already and ``overwrite`` is False.
        """
        if path is not None and not overwrite and Path(path).exists():
            raise KeyFileError(f"{path} exists; a lost key cannot be drawn again, pass overwrite=True to replace it")
        session = self._open()
        session.keygen()
        evaluation = session.evaluation()
        self._session, self._evaluation, self._key = session, evaluation, key_id(evaluation)
        if path is not None:
            _write_secret(Path(path), seal(self._header("secret"), session.secret()))
            _public_path(path).write_bytes(self.evaluation_keys())

    def load_keys(self, path: str | Path) -> None:
        """Take the keys that :meth:`keygen` wrote to ``path``.

        Raises:
            KeyFileError: others may read the file.
            KeyMismatchError: the key belongs to another network.
        """
        path = Path(path)
        if not path.is_file():
            raise KeyFileError(f"no key file at {path}; write one with keygen(path)")
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(f"{path} can be read by others; chmod 600 it, and draw new keys if they may have")
        header, payload = read(path, "secret")
        self._mine(header, "secret key", key=False)
        session = self._open()
        session.restore(bytes(payload))
        self._session, self._key, self._evaluation = session, header.key, None
        public = _public_path(path)
        if public.is_file():
            header, payload = read(public, "evalkeys")
            self._mine(header, "evaluation key")
            self._evaluation = bytes(payload)

    def evaluation_keys(self) -> bytes:
        """The public evaluation key in its envelope: what the server needs, once."""
        self._keyed()
        if self._evaluation is None:
            raise KeyFileError("the evaluation key was not kept beside the secret; send the server its own copy")
        return seal(self._header("evalkeys"), self._evaluation)

    # verbs

    def encrypt(self, x: Tensor | NDArray[np.float64], *, clip: bool = False, canary: bool = False) -> bytes:
        """A request for a batch of float inputs [N, C, H, W].

        Args:
            x: floats as the network was calibrated on.
            clip: saturate values outside the range instead of refusing; :attr:`clipped` counts them.
            canary: add one sample whose answer is known; :meth:`decrypt` checks it. Catches wrong keys, corruption
                and failed noise, not a malicious server.

        Raises:
            InputError: wrong shape or dtype, NaN, infinity, values out of range.
            KeyFileError: no keys yet.
        """
        session = self._keyed()
        codes, self.clipped = self._encode(_as_array(x), clip)
        if canary:
            codes = np.concatenate([codes, self.spec.canary_codes[None]])
        header = self._header("request", samples=len(codes), canary=canary)
        return seal(header, pack([session.encrypt(sample) for sample in codes]))

    def decrypt(self, answer: bytes, *, raw: bool = False, request: bytes | None = None) -> Tensor:
        """Float logits [N, classes] of an answer, or integers with ``raw``.

        Args:
            answer: what the server returned.
            raw: integers as they are.
            request: the request that it should answer: an answer to any other, such as an old one, is then refused.

        Raises:
            EnvelopeError: a damaged answer.
            KeyMismatchError: an answer under another key, of another network, or a canary that did not come back.
        """
        import torch

        session = self._keyed()
        header, payload = open_envelope(answer, "answer")
        self._mine(header, "answer")
        if request is not None and open_envelope(request, "request")[0].digest != header.request:
            raise KeyMismatchError("this answer belongs to another request, perhaps an earlier one; ask again")
        parts = unpack(payload)
        if len(parts) != header.samples:
            raise EnvelopeError(f"the answer announces {header.samples} samples and holds {len(parts)}; ask again")
        decrypted = [session.decrypt(part) for part in parts]
        if not decrypted or any(row.shape != (self.spec.canary_answer.size,) for row in decrypted):
            raise EnvelopeError("the answer does not hold one row of logits a sample; ask again")
        rows = np.stack(decrypted)
        if header.canary:
            if not np.array_equal(rows[-1], self.spec.canary_answer.reshape(-1)):
                raise KeyMismatchError(
                    "the canary came back wrong: wrong key, damaged ciphertext or failed noise; discard these answers"
                )
            rows = rows[:-1]
        if raw:
            return torch.from_numpy(rows)
        return torch.from_numpy(rows * self.spec.out_scale + self.spec.out_offset).float()

    def _encode(self, x: NDArray[np.float64], clip: bool) -> tuple[Ints, int]:
        spec = self.spec
        if not np.issubdtype(x.dtype, np.floating):
            raise InputError(f"expected float inputs, got {x.dtype}")
        size = int(np.prod(spec.in_shape))
        if x.ndim < 2 or (tuple(x.shape[1:]) != spec.in_shape and not (x.ndim == 2 and x.shape[1] == size)):
            raise InputError(
                f"expected a batch of shape [N, {', '.join(map(str, spec.in_shape))}], got {list(x.shape)}"
            )
        if len(x) == 0:
            raise InputError("the batch is empty; give at least one sample")
        if not np.isfinite(x).all():
            raise InputError("the input holds NaN or infinity")
        codes = np.round((x.reshape(-1, *spec.in_shape).astype(np.float64) - spec.in_offset) / spec.in_scale)
        top = 2**spec.in_bits - 1
        outside = int(((codes < 0) | (codes > top)).sum())
        if outside and not clip:
            reach = f"[{spec.in_offset:.4g}, {spec.in_offset + top * spec.in_scale:.4g}]"
            raise InputError(
                f"{outside} of {codes.size} input values lie outside {reach}; pass clip=True to saturate them"
            )
        return np.clip(codes, 0, top).astype(np.int64), outside

    def _open(self) -> ClientSession:
        found = find_engine(self.engine)
        installed = found.version()
        if installed != self.engine_version:
            raise EnvelopeError(
                f"this client was compiled with {self.engine} {self.engine_version}, installed is {installed}; "
                "install that version or compile again"
            )
        return found.client(self.spec.engine_payload)

    def _keyed(self) -> ClientSession:
        if self._session is None:
            raise KeyFileError("this client has no keys; call keygen() or load_keys(path)")
        return self._session

    def _mine(self, header: Header, what: str, *, key: bool = True) -> None:
        same_net(header, self.net, what)
        same_engine(header, self.engine, self.engine_version, what)
        if key and header.key != self._key:
            raise KeyMismatchError(
                f"this {what} belongs to the key {header.key[:12]}, this client holds {self._key[:12]}; "
                "decrypt with the client that encrypted"
            )

    def _header(self, kind: str, *, key: str | None = None, samples: int = 0, canary: bool = False) -> Header:
        return Header(
            kind,  # type: ignore[arg-type]  # callers pass literals
            self.net,
            self._key if key is None else key,
            self.engine,
            self.engine_version,
            self.spec.in_shape,
            samples,
            canary,
        )


def _as_array(x: object) -> NDArray[np.float64]:
    """Any batch as an array; torch's half types, gradients and devices included."""
    try:
        import torch

        if isinstance(x, torch.Tensor):
            x = x.detach().cpu()
            x = x.double() if x.dtype.is_floating_point else x
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected a batch of float inputs, got {type(x).__name__} ({error})") from error


def _public_path(path: str | Path) -> Path:
    return Path(f"{path}.evaluation")


def _write_secret(path: Path, data: bytes) -> None:
    """Write with mode 0600 from the first byte on, and in one step: never a half-written or readable secret."""
    scratch = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    except FileExistsError:
        raise KeyFileError(f"{scratch} is left over from an interrupted keygen; remove it") from None
    except OSError as error:
        scratch.unlink(missing_ok=True)  # no half of a secret stays behind
        raise KeyFileError(f"cannot write the secret key to {path}: {error}") from error
