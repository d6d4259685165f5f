"""How the lists of networks and data sets are shown: a table on a terminal, plain text of 80 columns, or JSON."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_WIDTH = 80


@dataclass(frozen=True)
class Setting:
    """One ``key=value`` that a spec may hold."""

    name: str
    default: bool | int | float | str | None
    text: str
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = str(self.default).lower() if isinstance(self.default, bool) else self.default
        return f"{self.name}={'' if shown is None else shown}"


@dataclass(frozen=True)
class Entry:
    """One line of a list, and what stands behind it."""

    name: str
    summary: str
    settings: tuple[Setting, ...]
    source: str


def show(entries: Sequence[Entry], *, kind: str, as_json: bool, whole: bool) -> None:
    """Print a list of ``kind`` (nets, data), or with ``whole`` everything about its one entry."""
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
    elif whole:
        print("\n".join(map(_details, entries)))
    elif sys.stdout.isatty():
        _print_table(entries, kind)
    else:
        width = max(len(entry.name) for entry in entries)
        print("\n".join(_line(entry, width) for entry in entries))


def _usage(entry: Entry) -> str:
    return " ".join(map(str, entry.settings))


def _line(entry: Entry, width: int) -> str:
    lines = textwrap.wrap(entry.summary, _WIDTH - width - 2)
    lines += textwrap.wrap(_usage(entry), _WIDTH - width - 4, initial_indent="  ", subsequent_indent="  ")
    head = f"{entry.name:<{width}}  {lines[0]}"
    return "\n".join([head, *(" " * (width + 2) + line for line in lines[1:])])


def _details(entry: Entry) -> str:
    lines = textwrap.wrap(f"{entry.name}: {entry.summary}", _WIDTH, subsequent_indent="  ")
    for setting in entry.settings:
        choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
        lines += textwrap.wrap(
            f"{setting}  {setting.text}{choices}", _WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    lines += textwrap.wrap("source: " + entry.source, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _print_table(entries: Sequence[Entry], kind: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", style="cyan", no_wrap=True)
    table.add_column("what it is, and its parameters")
    for entry in entries:
        table.add_row(entry.name, f"{entry.summary}\n[dim]{_usage(entry)}[/dim]" if entry.settings else entry.summary)
    console = Console()
    console.print(table)
    console.print(f"[dim]layerscope {kind} NAME says everything about one of them[/dim]")
