"""How a verdict, a level and a line look: one shape, one tone and one word each, so that colour never speaks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.report.markup import Html, el
from layerscope.verdict.types import Label, Level


@dataclass(frozen=True)
class Look:
    """What stands for one word."""

    tone: str
    """CSS class that sets the colour."""
    drawing: str
    """Inside of a 16 x 16 SVG symbol; ``currentColor`` is the tone."""
    ascii: str
    """One character for a plain terminal."""
    style: str
    """Style for a colour terminal (rich)."""


_RING = '<circle cx="8" cy="8" r="5.6" fill="none" stroke="currentColor" stroke-width="1.6"/>'

LABEL_LOOKS: dict[Label, Look] = {
    "healthy": Look("v-healthy", '<circle cx="8" cy="8" r="6.4" fill="currentColor"/>', "+", "bold blue"),
    "slow": Look("v-slow", f'{_RING}<path d="M8 2.4a5.6 5.6 0 0 0 0 11.2z" fill="currentColor"/>', "~", "yellow"),
    "very slow": Look(
        "v-very-slow", f'{_RING}<path d="M8 8V2.4A5.6 5.6 0 0 0 2.4 8z" fill="currentColor"/>', "-", "bold yellow"
    ),
    "unstable": Look("v-unstable", '<path d="M8 1.8 15 14H1z" fill="currentColor"/>', "!", "bold magenta"),
    "fails": Look(
        "v-fails",
        '<path d="m3 3 10 10M13 3 3 13" stroke="currentColor" stroke-width="3" stroke-linecap="round" fill="none"/>',
        "x",
        "bold red",
    ),
    "unknown": Look(
        "v-unknown",
        _RING.replace("/>", ' stroke-dasharray="2.2 2.2"/>'),
        "?",
        "dim",
    ),
}

LEVEL_LOOKS: dict[Level, Look] = {
    "good": Look("v-healthy", LABEL_LOOKS["healthy"].drawing, "+", "blue"),
    "caution": Look("v-slow", LABEL_LOOKS["slow"].drawing, "~", "yellow"),
    "bad": Look("v-fails", LABEL_LOOKS["fails"].drawing, "x", "red"),
    "unknown": Look("v-unknown", LABEL_LOOKS["unknown"].drawing, "?", "dim"),
}

#: Lines of the same tone differ by their dashes.
DASHES = (None, "6 3", "1.5 3", "9 3 2 3", "3 2", "12 4")
#: Tones for lines that carry no verdict.
TONES = tuple(f"k{i}" for i in range(8))


def symbols() -> Html:
    """All shapes, defined once in a page; :func:`glyph` and :func:`glyph_at` refer to them."""
    drawn = {look.tone: look.drawing for look in LABEL_LOOKS.values()}
    each = [
        el("symbol", Html(d), id=f"ls-{tone}", viewBox="0 0 16 16", overflow="visible") for tone, d in drawn.items()
    ]
    return el("svg", *each, width=0, height=0, class_="ls-defs", aria_hidden="true")


def glyph(look: Look) -> Html:
    """The shape, as large as the text beside it. Hidden from screen readers: the word always stands beside it."""
    return el("svg", el("use", href=f"#ls-{look.tone}"), class_=f"ls-g {look.tone}", aria_hidden="true")


def glyph_at(look: Look, x: float, y: float, size: float = 10) -> Html:
    """The shape inside a chart, centred on (x, y), in the tone of the element that holds it."""
    left, top = round(x - size / 2, 1), round(y - size / 2, 1)
    return el("use", href=f"#ls-{look.tone}", x=left, y=top, width=size, height=size)


def tag(look: Look, word: str) -> Html:
    """Shape and word together."""
    return el("span", glyph(look), " ", el("b", word), class_=f"ls-tag {look.tone}")


def dashes(tones: Sequence[str]) -> list[str | None]:
    """For each line its dash pattern: the first line of every tone is solid."""
    seen: dict[str, int] = {}
    found = []
    for tone in tones:
        found.append(DASHES[seen.get(tone, 0) % len(DASHES)])
        seen[tone] = seen.get(tone, 0) + 1
    return found
