"""The page around a report: one file, everything inside, nothing fetched."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from layerscope.report.looks import symbols
from layerscope.report.markup import Html, el, esc, join
from layerscope.report.palette import variables


def page(title: str, *sections: object, footer: object = "") -> Html:
    """A complete HTML document.

    Args:
        title: heading and window title.
        sections: what stands below it, one after the other; strings that are not :class:`Html` are escaped.
        footer: a last line, such as a date.
    """
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width,initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{title} · layerscope"),
        style(),
    )
    body = el(
        "body",
        el(
            "main",
            symbols(),
            el("header", el("p", "layerscope", class_="ls-brand"), el("h1", title)),
            *sections,
            el("p", footer, class_="ls-foot") if footer else "",
        ),
        script(),
        class_="ls ls-page",
    )
    return Html("<!doctype html>\n" + el("html", head, body, lang="en") + "\n")


def scoped(*sections: object) -> Html:
    """The same for a notebook cell: styles reach nothing outside the cell's own box."""
    return el("div", style(), symbols(), *sections, script(), class_="ls ls-cellbox")


@cache
def style() -> Html:
    """The stylesheet with the palette."""
    return Html(f"<style>{variables()}{_asset('page.css')}</style>")


@cache
def script() -> Html:
    """The inline script; without it the page loses the pointer's read-out and nothing else."""
    return Html(f"<script>{_asset('page.js')}</script>")


def _asset(name: str) -> str:
    return files("layerscope.report").joinpath(name).read_text("utf-8")


def section(heading: str, *body: object) -> Html:
    """A part of a page under its own heading."""
    return el("section", el("h2", heading), join(body), class_="ls-words")


def paragraph(text: object) -> Html:
    """A paragraph of text."""
    return el("p", esc(text))
