"""Backends by name."""

from __future__ import annotations

from layerscope.errors import did_you_mean
from layerscope.methods.encrypted.backends.clear import ClearEngine
from layerscope.methods.encrypted.backends.concrete import ConcreteEngine
from layerscope.methods.encrypted.backends.engine import Engine
from layerscope.methods.encrypted.errors import EngineError

BACKENDS = ("plain", "circuit", "concrete")


def engine(name: str) -> Engine:
    """The backend of this name; ``auto`` is the one that encrypts.

    Raises:
        EngineError: no such backend.
    """
    if name in ("auto", "concrete"):
        return ConcreteEngine()
    if name in ("plain", "circuit"):
        return ClearEngine(name)
    if name in ("ckks", "openfhe"):
        raise EngineError(
            f"{name} does not evaluate integer networks: ckks is a polynomial baseline (encrypted.CkksNet), openfhe a "
            "cross-check of single gates; use backend='concrete'"
        )
    raise EngineError(f"no backend {name!r}: {did_you_mean(name, BACKENDS)}")
