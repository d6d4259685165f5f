"""A figure: title, what it asks, one or several panels to switch between without any script, and how to read it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.report.markup import Html, el, join


@dataclass(frozen=True)
class View:
    """One of the pictures a figure can show."""

    name: str
    meaning: str
    picture: Html
    numbers: str = ""
    """The folded table behind the picture; it stands below the caption."""


def figure(
    title: str, views: Sequence[View], caption: object = "", *, question: str = "", key: Html | None = None
) -> Html:
    """Title and question above, the picture, and a sentence under it that says what is good and what is bad.

    With several ``views`` the reader chooses by radio buttons; the first one is shown, and printed, otherwise.
    """
    # The same content gets the same names, so that a report is the same bytes every time.
    unique = "ls" + hashlib.sha1("".join([title, *(v.picture for v in views)]).encode()).hexdigest()[:8]
    buttons = []
    for i, view in enumerate(views if len(views) > 1 else ()):
        name = f"{unique}-{i}"
        buttons.append(el("input", type="radio", name=unique, id=name, checked=i == 0))
        buttons.append(el("label", view.name, for_=name, title=view.meaning))
    pictures = [
        el("div", el("p", el("b", v.name), ": ", v.meaning, class_="ls-meaning"), v.picture, class_="ls-panel")
        for v in views
    ]
    tables = [el("div", Html(v.numbers), class_="ls-panel") for v in views]
    return el(
        "section",
        el("h2", title) if title else "",
        el("p", question, class_="ls-question") if question else "",
        *buttons,
        key or "",
        el("div", *pictures, class_="ls-panels"),
        el("p", caption, class_="ls-caption") if caption else "",
        el("div", *tables, class_="ls-panels ls-tables") if any(v.numbers for v in views) else "",
        class_="ls-fig",
    )


def row_of(*figures: Html) -> Html:
    """Figures side by side where there is room."""
    return el("div", join(figures), class_="ls-side")
