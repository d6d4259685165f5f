"""``layerscope norms``: the normalization layers and their parameters."""

from __future__ import annotations

from typing import Annotated

import tyro

from layerscope import norms
from layerscope.cli.listing import Entry, Setting, show
from layerscope.norms import NormInfo


def COMMAND(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None,
    /,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the normalization layers, or say everything about one of them.

    Args:
        name: a layer, such as group or bn; all of them if left out.
        as_json: print the list for a program.
    """
    chosen = norms.names() if name is None else (name,)
    show([_entry(norms.info(n)) for n in chosen], kind="norms", as_json=as_json, whole=name is not None)
    if name is not None and not as_json:
        print("\n".join(_facts(norms.info(name))))


def _entry(info: NormInfo) -> Entry:
    settings = tuple(Setting(p.name, _shown(p.default), p.text, p.choices) for p in info.params)
    return Entry(info.name, info.summary, settings, info.source or "-")


def _shown(default: bool | int | float | str | None) -> bool | int | float | str | None:
    """A default as a person would type it: five digits are enough of sqrt(2 pi / (pi - 1))."""
    return float(f"{default:.5g}") if isinstance(default, float) else default


def _facts(info: NormInfo) -> list[str]:
    facts = [
        "uses the batch" if info.uses_batch else "independent of the batch",
        "brings its own activation" if info.owns_activation else "",
        "acts on weights" if info.weight is not None else "",
    ]
    return [
        "properties: " + ", ".join(f for f in facts if f),
        *(["also known as: " + ", ".join(info.aliases)] if info.aliases else []),
        "for example: " + (info.example or info.name),
    ]
