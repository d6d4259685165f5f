"""One trial: a function's name and its arguments, frozen. Its id is the hash of exactly that."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from layerscope.errors import StudyError, did_you_mean
from layerscope.plain import to_plain

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]
TrialFunction = Callable[..., Mapping[str, Any]]
State = Literal["done", "failed"]


@dataclass(frozen=True)
class Trial:
    """What is run: ``function`` (``package.module:name``) with ``params`` as keyword arguments."""

    function: str
    params: tuple[tuple[str, Value], ...]
    """Sorted by name."""

    @classmethod
    def of(cls, function: str, params: Mapping[str, Value]) -> Trial:
        """A trial from a mapping; the order of its keys does not matter."""
        return cls(function, tuple(sorted(params.items())))

    @property
    def arguments(self) -> dict[str, Value]:
        """The keyword arguments."""
        return dict(self.params)

    @cached_property
    def canonical(self) -> str:
        """The one JSON text of this configuration: sorted keys, no spaces."""
        payload = {"function": self.function, "params": dict(self.params)}
        return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @cached_property
    def id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of :attr:`canonical`."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    trial: str
    """The trial's id."""
    state: State
    result: Mapping[str, Any]
    """What the function returned, as plain JSON values."""
    error: str
    """Last line of the error; empty if there was none."""
    trace: str
    """The whole traceback."""
    seconds: float


def execute(trial: Trial) -> Outcome:
    """Run a trial here and now; an exception of the function becomes a failed outcome with its traceback."""
    start = time.perf_counter()
    try:
        returned = function_of(trial.function)(**trial.arguments)
        result = _plain(returned, trial.function)
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip()
        return Outcome(trial.id, "failed", {}, last, traceback.format_exc(), time.perf_counter() - start)
    return Outcome(trial.id, "done", result, "", "", time.perf_counter() - start)


def function_of(name: str) -> TrialFunction:
    """The function that ``package.module:name`` names; modules of the working directory are found too.

    Raises:
        StudyError: it cannot be found.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise StudyError(f"{name!r} does not name a function: expected package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise StudyError(f"the module of the trial function {name!r} cannot be imported: {error}") from None
    if not callable(getattr(module, attribute, None)):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise StudyError(f"{module_name} has no function {attribute!r}: {did_you_mean(attribute, known)}")
    found: TrialFunction = getattr(module, attribute)
    return found


@dataclass(frozen=True)
class Signature:
    """The arguments a trial function takes."""

    known: tuple[str, ...]
    required: tuple[str, ...]
    open: bool
    """It takes any keyword."""


def signature_of(function: TrialFunction) -> Signature:
    """The keyword arguments of a trial function."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return Signature(
        tuple(p.name for p in named),
        tuple(p.name for p in named if p.default is p.empty),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _plain(returned: object, function: str) -> dict[str, Any]:
    if not isinstance(returned, Mapping):
        raise TypeError(f"{function} must return a mapping of plain values, it returned {type(returned).__name__}")
    return {str(key): to_plain(value) for key, value in returned.items()}
