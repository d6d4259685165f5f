"""What is known of a norm without building it: its name, parameters and facts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from layerscope import parameters
from layerscope.parameters import Kind as Kind

Slot = Literal["norm", "activation", "weight"]
Grouping = Literal["all", "one", "given"]

#: A function, or ``"module:name"`` loaded when it is first called.
Ref = Callable[..., Any] | str


@dataclass(frozen=True)
class Param(parameters.Param):
    """One parameter of a norm spec."""

    slots: tuple[Slot, ...] = ("norm",)
    """The slots whose builder takes this parameter."""


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
