"""Which view shows which type of result: one table, open to any room and to users."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from layerscope._show import writable
from layerscope.errors import LayerscopeError
from layerscope.report.document import page, scoped
from layerscope.report.markup import Html
from layerscope.report.styled import WIDTH, Lines

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """How results of one type are shown.

    Attributes:
        title: heading of the HTML page.
        fragment: the report as HTML, without page and heading; build it with this room's charts and tables.
        text: the report in plain text (a string), or as :class:`Lines` where it has colours on a terminal.
    """

    title: Callable[[Any], str]
    fragment: Callable[[Any], Html]
    text: Callable[[Any], str | Lines]


_VIEWS: dict[type, View] = {}


def register_view(
    kind: type[T],
    *,
    text: Callable[[T], str | Lines],
    fragment: Callable[[T], Html],
    title: Callable[[T], str] | None = None,
) -> None:
    """Show results of type ``kind``, and of its subclasses, by these functions; the last registration counts.

    The view of a type in ``layerscope.methods.medic`` or ``layerscope.study`` is looked for in
    ``layerscope.report.medic`` or ``layerscope.report.study``, which is imported when such a result is first shown and
    calls this function. Methods stand below the report, so they cannot call it themselves.
    """
    _VIEWS[kind] = View(title or (lambda result: type(result).__name__), fragment, text)


def view_of(result: object) -> View:
    """The view of ``result``'s type or nearest registered base.

    Raises:
        LayerscopeError: there is none.
    """
    _built_in()
    kinds = type(result).__mro__
    for kind in kinds:
        if kind not in _VIEWS:
            _import_view(kind.__module__)
        if kind in _VIEWS:
            return _VIEWS[kind]
    known = ", ".join(sorted(k.__name__ for k in _VIEWS))
    raise LayerscopeError(
        f"a {type(result).__name__} has no view; known: {known}. Add one with layerscope.report.register_view"
    )


def _built_in() -> None:
    if "layerscope.report.builtin" not in sys.modules:
        import_module("layerscope.report.builtin")


def _import_view(module: str) -> None:
    """Import the report's file for the room or method that ``module`` belongs to, if there is one."""
    parts = module.split(".")
    if parts[0] != "layerscope" or len(parts) < 2:
        return
    room = parts[2] if parts[1] == "methods" and len(parts) > 2 else parts[1]
    name = f"layerscope.report.{room}"
    if room != "report" and find_spec(name) is not None:
        import_module(name)


def styled(result: object) -> Lines:
    """The text of ``result`` with its styles."""
    made = view_of(result).text(result)
    if isinstance(made, Lines):
        return made
    lines = Lines(width=WIDTH)  # laid out by hand: cutting would lose words
    for line in made.splitlines():
        lines.add(line)
    return lines


def to_text(result: object) -> str:
    """``result`` as plain ASCII text, at most 80 columns wide, without colour."""
    return str(styled(result))


def to_fragment(result: object) -> Html:
    """``result`` as HTML for a notebook cell: styles inside and scoped, no outside link."""
    return scoped(view_of(result).fragment(result))


def write_html(result: object, path: str | Path, *, date: str = "") -> Path:
    """Write ``result`` as one self-contained offline HTML page.

    Args:
        result: a comparison, profile, verdict, or anything with a registered view.
        path: where to; folders that do not exist are made.
        date: a line for the foot of the page. Left out by default, so that the same result is the same bytes.

    Returns:
        The path.
    """
    view = view_of(result)
    target = writable(path)
    target.write_text(page(view.title(result), view.fragment(result), footer=date), encoding="utf-8")
    return target
