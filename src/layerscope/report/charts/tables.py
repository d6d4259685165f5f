"""Tables: the numbers behind a picture, and plain ones for any page."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.report.markup import Html, el, esc, join


def table(rows: Sequence[Sequence[object]], header: Sequence[object] = (), *, numeric_from: int = 1) -> Html:
    """A table that scrolls sideways where it does not fit; columns from ``numeric_from`` on are set to the right."""

    def cells(name: str, row: Sequence[object]) -> Html:
        return join(el(name, cell, class_="ls-r" if i >= numeric_from else None) for i, cell in enumerate(row))

    head = el("thead", el("tr", cells("th", header))) if header else Html("")
    body = el("tbody", join(el("tr", cells("td", row)) for row in rows))
    return el("div", el("table", head, body, class_="ls-table"), class_="ls-scroll")


def numbers_table(names: Sequence[str], rows: Sequence[tuple[str, str, Sequence[str]]]) -> Html:
    """The folded table behind a picture: the alternative for those who cannot see it, and what the pointer reads out.

    Args:
        names: the series, one column each.
        rows: (name of the place, a remark on it, one written value for each series).
    """
    head = el("tr", el("th"), join(el("th", n) for n in names))
    # Cells are written by hand: a page has thousands of them and nothing else is as large.
    body = [
        f'<tr><th{f""" title="{esc(about)}" """.rstrip() if about else ""}>{esc(name)}</th>'
        + "".join(f"<td>{esc(v)}</td>" for v in values)
        + "</tr>"
        for name, about, values in rows
    ]
    inner = el("table", el("thead", head), el("tbody", Html("".join(body))), class_="ls-table ls-numbers")
    return el("details", el("summary", "Numbers"), el("div", inner, class_="ls-scroll"), class_="ls-data")
