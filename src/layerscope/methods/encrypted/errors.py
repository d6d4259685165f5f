"""What can go wrong between a float network and an answer under encryption. Imports no torch."""

from __future__ import annotations

from layerscope.errors import LayerscopeError


class EncryptedError(LayerscopeError):
    """Base of every error of this room."""


class UnsupportedModuleError(EncryptedError):
    """A module or operation that an integer network cannot hold; names its path and the nearest replacement."""

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason, self.remedy = path, reason, remedy


class QuantizationError(EncryptedError):
    """Bits, weights or calibration data from which no integer network can be made."""


class InputError(EncryptedError):
    """An input of the wrong shape, dtype or range."""


class WidthError(EncryptedError):
    """An accumulator too wide for the engine that was asked to evaluate it."""

    def __init__(self, layer: str, width: int, limit: int, backend: str) -> None:
        super().__init__(
            f"{layer}: {width} bits are needed, the {backend} backend takes at most {limit}. Three remedies: fewer "
            f"exponents (bits=3 or smaller), fewer activation bits (act_bits), "
            + (f"a larger shift (lookup_bits={limit})" if limit < 53 else "an activation between the linear layers")
        )
        self.layer, self.width, self.limit = layer, width, limit


class EngineError(EncryptedError):
    """An engine of the wrong version, or one that failed its self-test."""


class EnvelopeError(EncryptedError):
    """Bytes that are no envelope, are damaged, cut short, of a newer format or of the wrong kind."""


class KeyMismatchError(EnvelopeError):
    """Keys, request, answer and network that do not belong together."""


class KeyFileError(EncryptedError):
    """A secret-key file that exists already or whose permissions let others read it."""
