"""A swap plan as text: one line a site, at most 80 columns, so that it can be read in any terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from layerscope.surgery.sites import Site

WIDTH = 80
_MARK = {"swap": " ", "keep": "=", "refuse": "!"}


def plan_table(title: str, sites: Sequence[Site], notes: Sequence[str]) -> str:
    """Title, one line a site (a run of alike sites that are kept is one line), reasons indented below, then notes."""
    lines = [_clip(title, WIDTH), ""]
    if sites:
        path_width = max(4, min(34, max(len(_paths(s)) for s in sites)))
        kind_width = max(4, min(18, max(len(s.kind) for s in sites)))
        lines.append(f"  {'site':<{path_width}} {'was':<{kind_width}} {'C':>5} becomes")
        for site in sites:
            head = (
                f"{_MARK[site.status]} {_clip(_paths(site), path_width, left=True):<{path_width}} "
                f"{_clip(site.kind, kind_width):<{kind_width}} {site.channels or '-':>5} "
            )
            lines.append(head + _clip(site.becomes or _word(site), WIDTH - len(head)))
            reason = "; ".join(part for part in (site.refused, site.note) if part)
            lines += textwrap.wrap(reason, WIDTH, initial_indent="    ", subsequent_indent="    ")
    for note in notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="* ", subsequent_indent="  ")
    return "\n".join(line.rstrip() for line in lines)


def _word(site: Site) -> str:
    return "refused" if site.status == "refuse" else "kept"


def _paths(site: Site) -> str:
    first = site.paths[0] or "(the network itself)"
    return first if len(site.paths) == 1 else f"{first} (+{len(site.paths) - 1})"


def _clip(text: str, width: int, left: bool = False) -> str:
    if len(text) <= width:
        return text
    return "..." + text[3 - width :] if left else text[: width - 3] + "..."
