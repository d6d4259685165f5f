"""What is known of a norm without building it: its name, parameters and facts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from layerscope.errors import SpecError
from layerscope.spec import Value

Kind = Literal["int", "float", "bool", "str"]
Slot = Literal["norm", "activation", "weight"]
Grouping = Literal["all", "one", "given"]

#: A function, or ``"module:name"`` loaded when it is first called.
Ref = Callable[..., Any] | str


@dataclass(frozen=True)
class Param:
    """One parameter of a norm spec: its type, default and range."""

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
    slots: tuple[Slot, ...] = ("norm",)
    """The slots whose builder takes this parameter."""
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


@dataclass(frozen=True)
class NormInfo:
    """One entry of the registry. A slot that is None stays as it is: identity, plain activation, plain weight."""

    name: str
    summary: str
    params: tuple[Param, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str = ""
    """Paper."""
    norm: Ref | None = None
    """``(channels, **params) -> Module`` for the norm slot."""
    activation: Ref | None = None
    """``(channels, base, **params) -> Module`` for the activation slot."""
    weight: Ref | None = None
    """``(layer, **params) -> layer``: wraps the convolution or linear layer before the slot."""
    uses_batch: bool = False
    needs_bias: bool = False
    owns_activation: bool = False
    grouping: Grouping | None = None
    """Channels sharing one statistic: all, one, or as given by ``size`` / ``groups``."""
    groups_default: int | None = None
    """Number of groups where neither ``size`` nor ``groups`` is given; at most one per channel."""
    example: str = ""
    """A complete spec, where the bare name is not one."""

    def param(self, name: str) -> Param | None:
        """The parameter of this name."""
        return next((p for p in self.params if p.name == name), None)


def load(ref: Ref) -> Callable[..., Any]:
    """The function behind a reference."""
    if not isinstance(ref, str):
        return ref
    module, _, name = ref.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), name)
    return loaded
