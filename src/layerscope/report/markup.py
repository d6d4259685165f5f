"""The smallest safe way to write HTML: everything is escaped unless it is :class:`Html` already."""

from __future__ import annotations

import html
from collections.abc import Iterable

#: Elements that HTML closes by themselves.
VOID = frozenset({"br", "hr", "img", "input", "meta"})
#: SVG shapes, written ``<path .../>`` where they hold nothing.
SHAPES = frozenset({"circle", "ellipse", "line", "path", "polyline", "rect", "use"})


class Html(str):
    """A string that is markup already. Anything else that goes into a page is text, and is escaped."""

    __slots__ = ()


def esc(value: object) -> Html:
    """``value`` as markup: :class:`Html` as it is, any other value as escaped text.

    >>> esc("a < b")
    'a &lt; b'
    """
    if isinstance(value, Html):
        return value
    # A lone surrogate (an undecodable byte of a file name) cannot be written as UTF-8.
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    # Control characters are not allowed in HTML at all, also not as references.
    return Html(html.escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """The escaped parts, one after the other."""
    return Html(esc(between).join(esc(p) for p in parts))


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """One element: ``el("td", "a < b", class_="n")`` is ``<td class="n">a &lt; b</td>``.

    In attribute names a trailing underscore is dropped and other underscores become hyphens; an attribute that
    is None or False is left out, one that is True is written without a value.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        # An attribute is text in any case: Html may hold tags, so it is not exempt here.
        written.append(f" {key}" if value is True else f' {key}="{esc(str(value))}"')
    opening = f"<{name}{''.join(written)}"
    if name in VOID:
        return Html(opening + ">")
    if name in SHAPES and not children:
        return Html(opening + "/>")
    return Html(f"{opening}>{join(children)}</{name}>")
