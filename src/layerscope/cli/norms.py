"""``layerscope norms``: the normalization layers and their parameters."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Annotated

import tyro

from layerscope import norms
from layerscope.norms import NormInfo, Param

_WIDTH = 80


def COMMAND(
    name: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the normalization layers, or say everything about one of them.

    Args:
        name: a layer, such as group or bn; all of them if left out.
        as_json: print the list for a program.
    """
    chosen = [norms.info(n) for n in norms.names()] if name is None else [norms.info(name)]
    if as_json:
        print(json.dumps([_as_dict(entry) for entry in chosen], indent=1))
    elif name is not None:
        print(_details(chosen[0]))
    elif sys.stdout.isatty():
        _print_table(chosen)
    else:
        print("\n".join(_line(entry) for entry in chosen))


def _usage(entry: NormInfo) -> str:
    """The parameters as a spec shows them: ``eps=1e-05 affine=true``; alternatives without a default as ``size=?``."""
    return " ".join(f"{p.name}={_shown(p)}" for p in entry.params)


def _shown(param: Param) -> str:
    if param.default is None:
        return "?"
    if isinstance(param.default, bool):
        return str(param.default).lower()
    return f"{param.default:.5g}" if isinstance(param.default, float) else str(param.default)


def _line(entry: NormInfo) -> str:
    width = max(map(len, norms.names()))
    lines = textwrap.wrap(entry.summary, _WIDTH - width - 2)
    lines += textwrap.wrap(_usage(entry), _WIDTH - width - 4, initial_indent="  ", subsequent_indent="  ")
    head = f"{entry.name:<{width}}  {lines[0]}"
    return "\n".join([head, *(" " * (width + 2) + line for line in lines[1:])])


def _details(entry: NormInfo) -> str:
    lines = [f"{entry.name}: {entry.summary}"]
    if entry.aliases:
        lines.append("also known as: " + ", ".join(entry.aliases))
    for p in entry.params:
        choices = f" ({', '.join(p.choices)})" if p.choices else ""
        lines += textwrap.wrap(
            f"{p.name}={_shown(p)}  {p.text}{choices}", _WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    facts = [
        "uses the batch" if entry.uses_batch else "independent of the batch",
        "brings its own activation" if entry.owns_activation else "",
        "acts on weights" if entry.weight is not None else "",
    ]
    lines.append("; ".join(f for f in facts if f))
    if entry.source:
        lines += textwrap.wrap("source: " + entry.source, _WIDTH, subsequent_indent="  ")
    if entry.example:
        lines.append("for example: " + entry.example)
    return "\n".join(lines)


def _as_dict(entry: NormInfo) -> dict[str, object]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "aliases": list(entry.aliases),
        "params": {p.name: {"type": p.kind, "default": p.default, "text": p.text} for p in entry.params},
        "uses_batch": entry.uses_batch,
        "owns_activation": entry.owns_activation,
        "acts_on_weights": entry.weight is not None,
        "source": entry.source,
        "example": entry.example or entry.name,
    }


def _print_table(entries: list[NormInfo]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("norm", style="cyan", no_wrap=True)
    table.add_column("what it is, and its parameters")
    for entry in entries:
        table.add_row(entry.name, f"{entry.summary}\n[dim]{_usage(entry)}[/dim]" if entry.params else entry.summary)
    console = Console()
    console.print(table)
    console.print("[dim]layerscope norms NAME says everything about one of them[/dim]")
