"""``layerscope data``: the data sets and their options."""

from __future__ import annotations

from typing import Annotated

import tyro

from layerscope import data
from layerscope.cli.listing import Entry, Setting, show


def COMMAND(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None,
    /,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the data sets, or say everything about one of them.

    Args:
        name: a data set, such as digits; all of them if left out.
        as_json: print the list for a program.
    """
    chosen = data.names() if name is None else (name,)
    show([_entry(data.info(n)) for n in chosen], kind="data", as_json=as_json, whole=name is not None)


def _entry(info: data.DataInfo) -> Entry:
    settings = tuple(Setting(o.name, o.default, o.text) for o in info.options)
    return Entry(info.name, info.summary, settings, info.source)
