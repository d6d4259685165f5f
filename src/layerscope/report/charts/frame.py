"""What every chart stands on: an SVG as wide as its place, text that never stretches, ticks, guides and end labels.

Horizontal places are percentages of the plot and vertical ones are pixels. Curves live in a nested SVG that is
stretched to the plot's width (strokes keep theirs), so the same markup serves a wide screen, a phone and paper. Labels
stand in gutters that the stylesheet keeps free on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.report.looks import Look, glyph_at
from layerscope.report.markup import Html, el, esc, join
from layerscope.report.scales import Scale

#: Horizontal units of the stretched part.
WIDE = 1000
#: Pixels between the baselines of two labels.
LABEL_GAP = 15
#: Longest label in a gutter, in characters.
LONGEST = 20


@dataclass(frozen=True)
class Guide:
    """A horizontal line that says what a value means, such as ``Guide(0.9, "slow above")``."""

    value: float
    text: str
    at_end: bool = False
    """The text stands at the right end of the line, not at the left."""


def percent(place: float) -> str:
    """A place between 0 and 1 as an SVG length."""
    return f"{100 * place:.2f}".rstrip("0").rstrip(".") + "%"


def clip(text: str, longest: int = LONGEST) -> str:
    """``text``, its end cut off where it is too long for a gutter."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def plot(height: int, *content: object, label: str, columns: int = 0, at: Sequence[float] | None = None) -> Html:
    """The outer SVG: full width, fixed height, described in words by ``label``.

    ``columns`` makes the inline script answer the pointer with the values of one column of the table that follows;
    ``at`` gives the columns' places where they are not evenly spaced.
    """
    crosshair = el("line", class_="ls-x", y1=0, y2=height) if columns else ""
    return el(
        "svg",
        *content,
        crosshair,
        class_="ls-plot",
        width="100%",
        height=height,
        role="img",
        aria_label=label,
        tabindex=0 if columns else None,
        data_n=columns or None,
        data_at=" ".join(f"{a:.4g}" for a in at) if at else None,
    )


def stretched(height: int, *content: object, y: float = 0) -> Html:
    """Content in ``WIDE`` horizontal units and half pixels down, stretched to the plot's width."""
    return el(
        "svg",
        *content,
        y=y or None,
        width="100%",
        height=height,
        viewBox=f"0 0 {WIDE} {2 * height}",
        preserveAspectRatio="none",
    )


def y_axis(scale: Scale, height: int, guides: Sequence[Guide] = (), mirrored: bool = False) -> Html:
    """Hair lines with their values in the left gutter (right if ``mirrored``), and guides with their meaning."""
    parts: list[object] = []
    taken = [scale.at(g.value) for g in guides]
    for value, text in scale.ticks(max(3, height // 40)):
        place = scale.at(value)
        if place is None or any(t is not None and t != place and abs(t - place) * height < 11 for t in taken):
            continue
        y = round(height * (1 - place), 1)
        parts.append(el("line", class_="ls-grid", x2="100%", y1=y, y2=y))
        side = {"x": "100%", "dx": 8, "class_": "ls-tick ls-start"} if mirrored else {"x": -8, "class_": "ls-tick"}
        parts.append(el("text", text, y=y, dy=".35em", **side))
    for guide, place in zip(guides, taken, strict=True):
        if place is None or not scale.low <= guide.value <= scale.high:
            continue
        y = round(height * (1 - place), 1)
        parts.append(el("line", class_="ls-guide", x2="100%", y1=y, y2=y))
        where = {"x": "100%", "dx": -4, "text_anchor": "end"} if guide.at_end else {"x": 4}
        parts.append(el("text", guide.text, class_="ls-note", y=y, dy=-4, **where))
    return join(parts)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near ``wanted``, in the same order, at least ``gap`` apart, inside [low, high] where there is room.

    >>> spread_out([50, 50, 50], 10, 0, 100)
    [40.0, 50.0, 60.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Neighbours that collide are merged into a block that is centred on what its members want.
    blocks: list[tuple[list[int], float]] = []

    def settle(members: list[int]) -> float:
        span = gap * (len(members) - 1)
        middle = sum(wanted[i] for i in members) / len(members)
        return min(max(middle - span / 2, low), max(high - span, low))

    for i in order:
        members, start = [i], settle([i])
        while blocks and blocks[-1][1] + gap * len(blocks[-1][0]) > start:
            members = blocks.pop()[0] + members
            start = settle(members)
        blocks.append((members, start))
    places = [0.0] * len(wanted)
    for members, start in blocks:
        for k, i in enumerate(members):
            places[i] = start + gap * k
    return places


@dataclass(frozen=True)
class EndLabel:
    """A name in the right gutter, led to ``y`` (pixels) at the plot's right edge."""

    name: str
    y: float
    tone: str
    key: int
    look: Look | None = None


def end_labels(labels: Sequence[EndLabel], height: int, mirrored: bool = False) -> Html:
    """Names beside the ends of their lines, moved apart where they would overlap, with thin leaders."""
    places = spread_out([label.y for label in labels], LABEL_GAP, 0, max(height, LABEL_GAP * (len(labels) - 1)))
    return join(_end_label(label, place, mirrored) for label, place in zip(labels, places, strict=True))


def _end_label(label: EndLabel, y: float, mirrored: bool) -> Html:
    s = "-" if mirrored else ""
    leader = f"M{s}3 {label.y:.1f}C{s}10 {label.y:.1f} {s}8 {y:.1f} {s}15 {y:.1f}"
    return el(
        "svg",
        el("path", d=leader, class_="ls-lead"),
        name_beside(label.name, y, label.look, mirrored),
        x=None if mirrored else "100%",
        class_=label.tone,
        data_c=label.key,
    )


def name_beside(name: str, y: float, look: Look | None, mirrored: bool = False) -> Html:
    """A name with its shape where it has one, centred on ``y``, right of x = 18 (left of -18 if ``mirrored``)."""
    sign = -1 if mirrored else 1
    shape = glyph_at(look, sign * 23, y) if look else Html("")
    full = el("title", name) if len(name) > LONGEST else Html("")
    text = el(
        "text", full, esc(clip(name)), class_="ls-name ls-end" if mirrored else "ls-name",
        x=sign * (32 if look else 18), y=round(y, 1), dy=".35em",
    )  # fmt: skip
    return join([shape, text])


def letters(names: Sequence[str]) -> int:
    """Length of the longest of ``names`` as it is drawn."""
    return max((min(len(n), LONGEST) for n in names), default=0)


def framed(picture: Html, room: int, mirrored: bool = False) -> Html:
    """The picture with gutters: on the right (left if ``mirrored``) room for names of so many letters."""
    return el("div", picture, class_="ls-frame ls-mirror" if mirrored else "ls-frame", style=f"--names:{room + 5}")
