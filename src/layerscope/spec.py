"""The one grammar that names things: ``name`` or ``name:key=value,key=value``.

The same string is used in Python, on the command line, in study files and in reports; parsing and
printing are inverse to each other. Norms (``group:size=8``) and networks (``resnet56:skipinit=true``)
both speak it. This file knows the grammar, not the names: registries check those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from layerscope.errors import SpecError

Value = bool | int | float | str

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, order=True)
class Spec:
    """A name and its parameters, in the order given; equal specs print the same string."""

    name: str
    params: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        if not self.params:
            return self.name
        return self.name + ":" + ",".join(f"{k}={_print(v)}" for k, v in self.params)

    @property
    def kwargs(self) -> dict[str, Value]:
        """The parameters as keyword arguments."""
        return dict(self.params)


def parse_spec(text: str) -> Spec:
    """Read ``name:key=value,...``; values are booleans, integers, floats or plain words.

    Raises:
        SpecError: the string is empty, a parameter has no ``=``, or a key stands twice.

    >>> parse_spec("group:size=8").params
    (('size', 8),)
    """
    name, colon, rest = text.strip().partition(":")
    if not _NAME.fullmatch(name):
        raise SpecError(f"{text!r} does not start with a name; expected  name  or  name:key=value,key=value")
    if not colon:
        return Spec(name)
    params: dict[str, Value] = {}
    for part in rest.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise SpecError(f"in {text!r}: {part.strip()!r} is not  key=value")
        if key in params:
            raise SpecError(f"in {text!r}: {key!r} is given twice")
        params[key] = _read(value)
    return Spec(name, tuple(params.items()))


def _read(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _print(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
