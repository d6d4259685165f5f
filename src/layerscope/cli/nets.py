"""``layerscope nets``: the reference networks and their parameters."""

from __future__ import annotations

from typing import Annotated

import tyro

from layerscope import nets
from layerscope.cli.listing import Entry, Setting, show


def COMMAND(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None,
    /,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the reference networks, or say everything about one of them.

    Args:
        name: a network, such as resnet56; all of them if left out.
        as_json: print the list for a program.
    """
    chosen = nets.names() if name is None else (name,)
    show([_entry(nets.info(n)) for n in chosen], kind="nets", as_json=as_json, whole=name is not None)


def _entry(net: nets.NetInfo) -> Entry:
    settings = tuple(Setting(p.name, p.default, p.text, p.choices) for p in net.params)
    return Entry(net.name, net.summary, settings, net.source)
