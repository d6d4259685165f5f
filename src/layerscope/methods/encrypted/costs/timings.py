"""What one gate and one lookup take: named presets, each with where its numbers come from, and a probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from layerscope.errors import did_you_mean
from layerscope.methods.encrypted.errors import EngineError


@dataclass(frozen=True)
class Timing:
    """Seconds of an engine's primitive operations on one core, and sizes in bytes."""

    name: str
    source: str
    """Where the numbers come from."""
    gate: float | None = None
    """One bootstrapped two-input gate."""
    bit: tuple[tuple[int, float], ...] = ()
    """(width of the word, seconds) to take off its lowest bit exactly."""
    lookup: tuple[tuple[int, float], ...] = ()
    """(bits, seconds) of one lookup."""
    key_bytes: int | None = None
    ciphertext_bytes: int | None = None
    """Of one encrypted bit (gates) or number (lookups)."""

    def lookup_seconds(self, bits: int) -> float | None:
        """One lookup of ``bits`` bits; beyond the table about 2.3 times more for each further bit."""
        return _read(self.lookup, bits, 2.3)

    def bit_seconds(self, width: int) -> float | None:
        """Taking off the lowest bit of a ``width``-bit word; beyond the table as the last entries grow."""
        return _read(self.bit, width, 1.5)


def _read(table: tuple[tuple[int, float], ...], key: int, growth: float) -> float | None:
    if not table:
        return None
    rows = sorted(table)
    for at, seconds in rows:
        if key <= at:
            return seconds
    last, seconds = rows[-1]
    return seconds * growth ** (key - last)


PRESETS: dict[str, Timing] = {
    "tfhe-2017": Timing(
        "tfhe-2017",
        "the TFHE library's advertised 13 ms a gate on one core; not measured here",
        gate=0.013,
        key_bytes=95_000_000,
        ciphertext_bytes=2_524,
    ),
    "concrete-2.11": Timing(
        "concrete-2.11",
        "CPU seconds by probe_concrete(widths=(8, 10), count=8) on a shared Xeon core; the widest value of a network "
        "decides the parameters of all, so real networks take up to twice as long",
        bit=((8, 0.0177), (10, 0.0165)),
        lookup=((3, 0.0192), (4, 0.0223), (5, 0.0289), (6, 0.0610)),
        key_bytes=629_733_376,
    ),
    "paper-full": Timing(
        "paper-full",
        "arXiv 1906.00148, tables 2-4: seconds / gates of the fully bootstrapped columns",
        gate=0.0129,
        ciphertext_bytes=32 * 1024,
    ),
    "paper-leveled": Timing(
        "paper-leveled",
        "published leveled estimate; not achievable as a composition of gates (see docs/encrypted.md)",
        gate=10.8e-6,
        ciphertext_bytes=32 * 1024,
    ),
}


def timing(name: str) -> Timing:
    """A preset by name.

    Raises:
        EngineError: no such preset.
    """
    if name not in PRESETS:
        raise EngineError(f"no timing {name!r}: {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def probe_concrete(
    lookups: tuple[int, ...] = (3, 4, 5, 6), widths: tuple[int, ...] = (6, 8, 10), count: int = 16
) -> Timing:
    """Measure Concrete here: CPU seconds of one lookup and of one exact bit removal, amortised over ``count`` values.

    Each entry is a circuit of its own with its own keys, so that an engine's parameters suit the width; in a network
    the widest value decides and small lookups cost more. Takes minutes.

    Raises:
        MissingExtraError: Concrete is not installed.
    """
    import numpy as np

    from layerscope.methods.encrypted.backends.concrete import load_fhe

    fhe = load_fhe()

    def seconds(function: Callable[[Any], Any], top: int) -> tuple[float, int]:
        compiler = fhe.Compiler(function, {"x": "encrypted"})
        samples = [np.zeros(count, np.int64), np.full(count, top), np.arange(count) % (top + 1)]
        circuit = compiler.compile(samples, configuration=fhe.Configuration(global_p_error=2.0**-17))
        circuit.keygen()
        encrypted = circuit.encrypt(samples[2])
        circuit.run(encrypted)
        start = time.process_time()
        circuit.run(encrypted)
        taken = (time.process_time() - start) / count
        return taken, int(circuit.size_of_bootstrap_keys + circuit.size_of_keyswitch_keys)

    def looked_up(bits: int) -> tuple[float, int]:
        top = 2**bits - 1
        return seconds(lambda x: fhe.univariate(lambda v: np.minimum(v * 3 // 2, top))(x), top)

    def shortened(width: int, lost: int) -> tuple[float, int]:
        def function(x: Any) -> Any:
            return fhe.univariate(lambda v: v >> lost)(fhe.truncate_bit_pattern(x, lsbs_to_remove=lost))

        return seconds(function, 2**width - 1)

    table = [(bits, looked_up(bits)) for bits in lookups]
    kept = min(lookups)
    bit = [(width, shortened(width, width - kept)) for width in widths if width > kept]
    alone = dict(table)[kept][0]
    keys = max(size for _, (_, size) in table + bit)
    removal = tuple((width, max(both - alone, 0.0) / (width - kept)) for width, (both, _) in bit)
    from importlib.metadata import version

    name = f"concrete {version('concrete-python')} probed"
    lookup = tuple((bits, taken) for bits, (taken, _) in table)
    return Timing(name, f"CPU seconds measured here, {count} values a call", None, removal, lookup, keys)
