"""The parameters that a spec may hold (``group:size=8``): what norms, networks and data sets say of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from layerscope.errors import SpecError
from layerscope.spec import Value

Kind = Literal["int", "float", "bool", "str"]


@dataclass(frozen=True)
class Param:
    """One ``key=value`` of a spec: its type, default and range."""

    name: str
    kind: Kind
    default: Value | None = None
    """None: not set (an alternative is used), or required."""
    text: str = ""
    low: float | None = None
    """Smallest allowed value."""
    above: float | None = None
    """Values must be greater than this."""
    high: float | None = None
    """Largest allowed value."""
    choices: tuple[str, ...] = ()
    required: bool = False

    def read(self, value: Value, spec: str) -> Value:
        """``value`` as this parameter's type.

        Raises:
            SpecError: wrong type, out of range, or not one of the choices; ``spec`` is named in the message.
        """
        if self.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.kind == "str" and not isinstance(value, bool):
            value = str(value)
        if type(value).__name__ != self.kind:
            raise SpecError(f"in {spec!r}: {self.name} must be {self._expected()}, not {value!r}")
        if self.choices and value not in self.choices:
            raise SpecError(f"in {spec!r}: {self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not self._in_range(value):
            raise SpecError(f"in {spec!r}: {self.name} must be {self._expected()}, not {value!r}")
        return value

    def _in_range(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and value == value
        )

    def _expected(self) -> str:
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}[self.kind]
        bounds = [
            f"at least {self.low:g}" if self.low is not None else "",
            f"greater than {self.above:g}" if self.above is not None else "",
            f"at most {self.high:g}" if self.high is not None else "",
        ]
        stated = " and ".join(b for b in bounds if b)
        return f"{kind} {stated}".strip()


def param(name: str, default: Value, text: str, low: float | None = None, choices: tuple[str, ...] = ()) -> Param:
    """A parameter whose type is that of its default.

    >>> param("width", 64, "channels", low=1).read(32, "net:width=32")
    32
    """
    return Param(name, cast("Kind", type(default).__name__), default, text, low=low, choices=choices)
