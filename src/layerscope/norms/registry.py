"""The one table of normalization choices: parse, build, list, register. Imports no torch.

::

    norms.parse("gn:size=8")              # Spec('group', (('size', 8),)); unknown names get near misses
    norms.build("group:size=8", 64)       # the layer
    norms.recipe("frn")                   # norm slot, activation slot, weight wrapper, facts

    @layerscope.register_norm("mine", summary="x times a learned gain")
    def mine(channels: int, alpha: float = 0.5) -> nn.Module:
        return MyNorm(channels, alpha)    # "mine:alpha=0.3" now works wherever a norm is named
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from layerscope.errors import SpecError, did_you_mean
from layerscope.norms.catalog import CATALOG
from layerscope.norms.facts import Kind, NormInfo, Param, Ref
from layerscope.norms.grouping import nearest_divisor
from layerscope.spec import Spec, parse_spec

if TYPE_CHECKING:
    from torch import nn

    from layerscope.norms.slots import Recipe

F = TypeVar("F", bound=Callable[..., Any])

_ENTRIES: dict[str, NormInfo] = {}
_ALIASES: dict[str, str] = {}


def parse(spec: str | Spec) -> Spec:
    """Check a norm spec against the registry.

    Args:
        spec: such as ``group:size=8`` or ``bn``. Aliases become the canonical name; parameters come out in the
            registry's order, with their types and ranges checked.

    Returns:
        A spec that :func:`build` and :func:`recipe` take. Parsing its string gives the same spec.

    Raises:
        SpecError: unknown name or parameter (with near misses), wrong type or range, or an ambiguous group count.
    """
    if not isinstance(spec, str | Spec):
        name = getattr(spec, "__name__", type(spec).__name__)  # type: ignore[unreachable]  # what callers pass all the same
        raise SpecError(f"a norm is named by a string such as  batch  or  group:size=8; got {name}")
    text = str(spec)
    _refuse_bare_number(text)
    given = parse_spec(spec) if isinstance(spec, str) else spec
    entry = info(given.name)
    for key in given.kwargs:
        if entry.param(key) is None:
            known = [p.name for p in entry.params]
            hint = did_you_mean(key, known) if known else f"{entry.name} takes no parameters"
            raise SpecError(f"in {text!r}: {entry.name} has no parameter {key!r}; {hint}")
    values = {p.name: p.read(given.kwargs[p.name], text) for p in entry.params if p.name in given.kwargs}
    for param in entry.params:
        if param.required and param.name not in values:
            raise SpecError(f"{text!r} needs {param.name}=, {param.text}; for example  {entry.example or text}")
    if entry.grouping == "given":
        _check_grouping(entry, values, text)
    return Spec(entry.name, tuple(values.items()))


def build(spec: str | Spec, channels: int) -> nn.Module:
    """The layer a spec names, for ``channels`` channels.

    Takes [N, C], tokens [N, S, C] and maps [N, C, H, W]. A layer that holds its own activation (EvoNorm) is returned
    whole. Use :func:`recipe` to fill the three slots of a network (weights, norm, activation).

    Raises:
        SpecError: an unreadable spec, channels that the groups do not divide, or a choice that acts on weights and
            has no layer of its own.
    """
    made = recipe(spec)
    entry = made.info
    if entry.norm is None and entry.weight is not None:
        raise SpecError(
            f"{made.spec} acts on the weights of the layer before it and is no layer by itself: "
            f"norms.recipe({str(made.spec)!r}).weight(conv) wraps a convolution or linear layer"
        )
    if entry.norm is None and entry.owns_activation:
        return made.activation(channels)
    return made.norm(channels)


def recipe(spec: str | Spec) -> Recipe:
    """Everything that choosing this norm changes in a network; see :class:`layerscope.norms.slots.Recipe`."""
    from layerscope.norms.slots import Recipe

    parsed = parse(spec)
    return Recipe(parsed, info(parsed.name))


def adapt(spec: str | Spec, channels: int) -> Spec:
    """The same spec with the group size (or count) replaced by the nearest one that divides ``channels``.

    A spec without groups, or whose groups divide, comes back unchanged.

    >>> str(adapt("group:size=32", 24)), str(adapt("group:groups=32", 64))
    ('group:size=24', 'group:groups=32')
    """
    parsed = parse(spec)
    if info(parsed.name).grouping != "given":
        return parsed
    return Spec(
        parsed.name,
        tuple(
            (k, nearest_divisor(channels, v)) if k in ("size", "groups") and isinstance(v, int) else (k, v)
            for k, v in parsed.params
        ),
    )


def names() -> tuple[str, ...]:
    """Canonical names, in the order of registration: the paper's layers first."""
    return tuple(_ENTRIES)


def info(name: str) -> NormInfo:
    """What is known of a norm, without torch.

    Raises:
        SpecError: unknown name; the message says which are near.
    """
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in _ENTRIES:
        raise SpecError(f"no norm {name!r}; {did_you_mean(name, [*_ENTRIES, *_ALIASES])}")
    return _ENTRIES[key]


def register_norm(
    name: str,
    *,
    summary: str,
    aliases: tuple[str, ...] = (),
    uses_batch: bool = False,
    needs_bias: bool = False,
    owns_activation: bool = False,
    replace: bool = False,
) -> Callable[[F], F]:
    """Register ``(channels, ...) -> nn.Module`` as a norm that every part of the package can name.

    The function's further parameters, with their annotations and defaults, become the spec's parameters.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``.
        summary: one line for lists.
        aliases: other names for the same norm.
        uses_batch: the output of a sample depends on the other samples of its batch.
        needs_bias: the layer before it keeps its bias.
        owns_activation: the module replaces the activation (as EvoNorm does) and stands in the activation slot.
        replace: allow a name that is already taken.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        SpecError: the name is taken or not a name, or a parameter's type is not bool, int, float or str.
    """

    def register(function: F) -> F:
        def in_activation_slot(channels: int, base: object, **params: object) -> object:
            return function(channels, **params)

        slot = "activation" if owns_activation else "norm"
        ref: Ref = in_activation_slot if owns_activation else function
        entry = NormInfo(
            name,
            summary,
            tuple(_read_param(p, function, slot) for p in list(inspect.signature(function).parameters.values())[1:]),
            aliases,
            norm=None if owns_activation else ref,
            activation=ref if owns_activation else None,
            uses_batch=uses_batch,
            needs_bias=needs_bias,
            owns_activation=owns_activation,
        )
        _add(entry, replace=replace)
        return function

    return register


def _add(entry: NormInfo, *, replace: bool = False) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_.\-]*", entry.name):
        raise SpecError(f"{entry.name!r} is no name for a norm: lower-case letters, digits, '_', '-' and '.'")
    for name in (entry.name, *entry.aliases):
        if not replace and (name in _ENTRIES or name in _ALIASES):
            raise SpecError(f"a norm named {name!r} is already registered; pass replace=True to take its place")
    _ALIASES.pop(entry.name, None)
    _ENTRIES[entry.name] = entry
    _ALIASES.update(dict.fromkeys(entry.aliases, entry.name))


def _read_param(parameter: inspect.Parameter, function: Callable[..., Any], slot: str) -> Param:
    hint = typing.get_type_hints(function).get(parameter.name) if _resolvable(function) else None
    required = parameter.default is inspect.Parameter.empty
    kind = hint if hint in (bool, int, float, str) else type(parameter.default)
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or kind not in (bool, int, float, str):
        raise SpecError(
            f"parameter {parameter.name!r} of {function.__name__} cannot be written in a spec: "
            "it needs a bool, int, float or str annotation or default"
        )
    default = None if required else parameter.default
    slots = cast("tuple[typing.Literal['norm', 'activation', 'weight'], ...]", (slot,))
    text = f"a {kind.__name__}"
    return Param(parameter.name, cast("Kind", kind.__name__), default, text, slots=slots, required=required)


def _resolvable(function: Callable[..., Any]) -> bool:
    try:
        typing.get_type_hints(function)
    except NameError:  # an annotation that exists for type checkers only; the default's type decides
        return False
    return True


def _refuse_bare_number(text: str) -> None:
    name, _, rest = text.strip().partition(":")
    entry = _ENTRIES.get(_ALIASES.get(name.lower(), name.lower()))
    if entry is not None and entry.grouping == "given" and rest.strip().isdigit():
        n = rest.strip()
        raise SpecError(
            f"{text!r} could mean {n} channels a group or {n} groups: "
            f"write {entry.name}:size={n} or {entry.name}:groups={n}"
        )


def _check_grouping(entry: NormInfo, values: dict[str, Any], text: str) -> None:
    given = [k for k in ("size", "groups") if k in values]
    if len(given) == 2 or (not given and entry.groups_default is None):
        raise SpecError(
            f"{text!r} needs exactly one of size= (channels a group) and groups= (number of groups): "
            f"for example {entry.name}:size=32 or {entry.name}:groups=32"
        )


for _entry in CATALOG:
    _add(_entry)
