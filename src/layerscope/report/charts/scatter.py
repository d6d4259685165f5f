"""Points with names, and a line through some of them: a trade-off, a Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerscope.report import numbers
from layerscope.report.charts.frame import LABEL_GAP, Guide, clip, framed, percent, plot, spread_out, stretched, y_axis
from layerscope.report.charts.lines import place_of, polyline
from layerscope.report.charts.tables import numbers_table
from layerscope.report.looks import TONES, Look, glyph_at
from layerscope.report.markup import Html, el, join
from layerscope.report.scales import Kind, Scale, fit

_LIFT = 8
"""Pixels by which the name of a point on a line stands above it."""
_WIDE, _LETTER, _BESIDE = 640, 7, 15
"""Pixels of the plot on a wide screen, of a letter, and from a point to its name: which names would overlap."""
_NAME_ROOM = 12
"""Letters of a name that may reach into the right gutter."""


@dataclass(frozen=True)
class Point:
    """One named point."""

    name: str
    """May be empty: one of many."""
    x: float
    y: float
    tone: str = ""
    look: Look | None = None


def scatter(
    points: Sequence[Point],
    *,
    x_kind: Kind = "linear",
    y_kind: Kind = "linear",
    x_title: str = "",
    y_title: str = "",
    path: Sequence[int] = (),
    y_guides: Sequence[Guide] = (),
    write_x: Callable[[float | None], str] = numbers.short,
    write_y: Callable[[float | None], str] = numbers.short,
    height: int = 320,
) -> tuple[Html, Html]:
    """Points in the plane, each with its name beside it.

    Args:
        points: what to draw; a point without a place (NaN, negative on a log axis) is only in the table.
        x_kind: horizontal scale.
        y_kind: vertical scale.
        x_title: what runs to the right.
        y_title: what runs upward.
        path: indices of points to join by a line, in this order.
        y_guides: horizontal lines that say what a value means.
        write_x: how an x is written in the table.
        write_y: how a y is written in the table.
        height: pixels.

    Returns:
        The picture, and the folded table of its numbers.
    """
    across, up = fit(x_kind, [p.x for p in points]), fit(y_kind, [p.y for p in points])
    placed = {
        k: (x, y) for k, p in enumerate(points) if (x := across.at(p.x)) is not None and (y := up.at(p.y)) is not None
    }
    joined = [k for k in path if k in placed]
    line = polyline([place_of(*placed[k], height) for k in joined]) if len(joined) > 1 else ""
    names = _names(points, placed, joined, height)
    picture = plot(
        height + 40,
        y_axis(up, height, y_guides),
        x_axis(across, height, x_title),
        stretched(height, el("path", d=line, class_="ls-line ls-path")) if line else "",
        *(
            _point(points[k], k, place, names.get(k), height, aside=bool(path) and k not in path)
            for k, place in placed.items()
        ),
        label=f"{y_title} against {x_title} for " + ", ".join(p.name for p in points if p.name),
    )
    rows = [(p.name, "", [write_x(p.x), write_y(p.y)]) for p in points]
    heading = el("p", y_title, class_="ls-y-title") if y_title else ""
    frame = el("div", heading, framed(picture, _NAME_ROOM), class_="ls-scatter")
    return frame, numbers_table([x_title, y_title], rows)


def x_axis(scale: Scale, height: int, title: str = "") -> Html:
    """Values below the plot, and what they are."""
    parts = []
    for value, text in scale.ticks(8):
        place = percent(scale.at(value) or 0.0)
        parts.append(el("line", class_="ls-tickmark", x1=place, x2=place, y1=height, y2=height + 4))
        parts.append(el("text", text, class_="ls-x-tick", x=place, y=height + 16))
    if title:
        parts.append(el("text", f"{title} →", class_="ls-x-title", x="100%", y=height + 33))
    return join([el("line", class_="ls-base", x2="100%", y1=height, y2=height), *parts])


def _names(
    points: Sequence[Point], placed: dict[int, tuple[float, float]], path: Sequence[int], height: int
) -> dict[int, float]:
    """Heights of the names in pixels, moved apart among names of which one reaches above or below the next."""
    # A line through points mostly falls or rises to the right: their names stand above it.
    found = {k: height * (1 - y) - (_LIFT if k in path else 0) for k, (_, y) in placed.items() if points[k].name}
    near: list[list[int]] = []
    reach = -1.0
    for k in sorted(found, key=lambda k: placed[k][0]):
        left = placed[k][0] * _WIDE
        if left >= reach:
            near.append([])
        near[-1].append(k)
        reach = max(reach, left + _BESIDE + _LETTER * len(clip(points[k].name)))
    for group in near:
        gap = min(LABEL_GAP - 1, (height - 12) / max(1, len(group) - 1))
        found.update(zip(group, spread_out([found[k] for k in group], gap, 6, height - 6), strict=True))
    return found


def _point(point: Point, key: int, place: tuple[float, float], name_y: float | None, height: int, aside: bool) -> Html:
    x, y = place[0], round(height * (1 - place[1]), 1)
    tone = point.tone or TONES[key % len(TONES)]
    shape = glyph_at(point.look, 0, y, 12) if point.look else el("circle", cy=y, r=4.5, class_="ls-point")
    leader, name = Html(""), Html("")
    if name_y is not None:
        moved = abs(name_y - y) > _LIFT + 1
        leader = el("path", d=f"M5 {y}L13 {name_y:.1f}", class_="ls-lead") if moved else leader
        beside = _BESIDE if moved else 10
        name = el("text", clip(point.name), class_="ls-name", x=beside, y=round(name_y, 1), dy=".35em")
    return el(
        "svg",
        leader,
        shape,
        name,
        x=percent(x),
        class_=f"{tone} ls-aside" if aside else tone,
        data_c=key,
    )
