"""Curves with bands, rings and names at their ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from layerscope.report.charts.frame import WIDE, EndLabel, end_labels, percent, stretched
from layerscope.report.looks import TONES, Look, dashes
from layerscope.report.markup import Html, el, join
from layerscope.report.scales import Scale


@dataclass(frozen=True)
class Line:
    """One named series. ``None`` and NaN are drawn as gaps, infinities at the plot's edge."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    """Lower and upper edge of a band around the line, such as the range over seeds."""
    high: Sequence[float | None] | None = None
    tone: str = ""
    """CSS class that gives the colour; empty takes the next tone of the palette."""
    look: Look | None = None
    """Shape before the name."""
    mark: int | None = None
    """Index of the value to draw a ring around."""
    apart: int = 0
    """So many of the last values are drawn as points that the curve does not reach."""


def with_tones(lines: Sequence[Line]) -> list[str]:
    """The tone of each line."""
    return [line.tone or TONES[i % len(TONES)] for i, line in enumerate(lines)]


def even(count: int) -> list[float]:
    """Middles of ``count`` columns of equal width, as places between 0 and 1."""
    return [(i + 0.5) / count for i in range(count)]


def draw_lines(
    lines: Sequence[Line],
    scale: Scale,
    height: int,
    places: Sequence[float],
    *,
    name_curves: str = "",
    mirrored: bool = False,
) -> Html:
    """All lines over the same places: bands below, then curves, then rings and names.

    Args:
        lines: the series.
        scale: vertical axis.
        height: pixels.
        places: horizontal places between 0 and 1, one for each value.
        name_curves: the curves are put into a group with this id and curve ``k`` gets the id ``{name_curves}-{k}``, so
            that they can be drawn again elsewhere, at another size, by ``<use>``.
        mirrored: names stand at the left ends.
    """
    tones = with_tones(lines)
    patterns = dashes(tones)
    bands, curves, marks, ends = [], [], [], []
    for key, (line, tone, pattern) in enumerate(zip(lines, tones, patterns, strict=True)):
        ys = [scale.at(v) for v in line.values]
        joined: list[float | None] = [*ys[: len(ys) - line.apart], *([None] * line.apart)]
        if line.low is not None and line.high is not None:
            reach = len(ys) - line.apart
            edges = [[scale.at(v) for v in edge[:reach]] for edge in (line.low, line.high)]
            band = area(places[:reach], edges[0], edges[1], height)
            if band:
                bands.append(el("path", class_=f"ls-band {tone}", data_c=key, d=band))
        curve, dots = trace(places, joined, height)
        dots += "".join(_dot(p, y, height) for p, y in list(zip(places, ys, strict=True))[len(ys) - line.apart :])
        drawn = [
            el("path", class_="ls-line", stroke_dasharray=pattern, d=curve) if curve else "",
            el("path", class_="ls-line ls-dot", d=dots) if dots else "",
        ]
        curves.append(el("g", *drawn, class_=tone, data_c=key, id=f"{name_curves}-{key}" if name_curves else None))
        marks.append(_marks(line, ys, places, height, tone, key))
        end = _first(ys) if mirrored else _first(list(reversed(ys)))
        if end is not None:
            ends.append(EndLabel(line.name, round(height * (1 - end), 1), tone, key, line.look))
    group = el("g", *curves, id=name_curves or None)
    return join([stretched(height, *bands, group), *marks, end_labels(ends, height, mirrored)])


def _first(ys: Sequence[float | None]) -> float | None:
    return next((y for y in ys if y is not None), None)


def _dot(place: float, y: float | None, height: int) -> str:
    return "" if y is None else "M{} {}h0".format(*place_of(place, y, height))


def _marks(line: Line, ys: Sequence[float | None], places: Sequence[float], height: int, tone: str, key: int) -> Html:
    """A ring at ``line.mark`` and an infinity sign where the first infinite value stands."""
    parts = []
    if line.mark is not None and ys[line.mark] is not None:
        y = round(height * (1 - (ys[line.mark] or 0.0)), 1)
        parts.append(el("circle", class_=f"ls-ring {tone}", data_c=key, cx=percent(places[line.mark]), cy=y, r=4.5))
    endless = next((i for i, v in enumerate(line.values) if v is not None and math.isinf(v)), None)
    if endless is not None:
        above = (line.values[endless] or 0.0) > 0
        parts.append(
            el("text", "∞" if above else "−∞", class_=f"ls-inf {tone}", data_c=key, x=percent(places[endless]),
               y=-3 if above else height + 12)
        )  # fmt: skip
    return join(parts)


def trace(places: Sequence[float], ys: Sequence[float | None], height: int) -> tuple[str, str]:
    """SVG paths for the runs of at least two points, and for the points that stand alone."""
    runs, dots = [], []
    for run in _runs(ys):
        points = [place_of(places[i], ys[i] or 0.0, height) for i in run]
        if len(points) == 1:
            dots.append(f"M{points[0][0]} {points[0][1]}h0")
        else:
            runs.append(polyline(simplify(points)))
    return "".join(runs), "".join(dots)


def area(places: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], height: int) -> str:
    """SVG path of the area between two series, where both have a value; empty where it is nowhere a pixel high."""
    both = [None if a is None or b is None else b - a for a, b in zip(low, high, strict=True)]
    if all(b is None or b * height < 1 for b in both):
        return ""
    parts = []
    for run in _runs(both):
        over = [place_of(places[i], high[i] or 0.0, height) for i in run]
        under = [place_of(places[i], low[i] or 0.0, height) for i in reversed(run)]
        if len(run) > 1:
            parts.append(polyline(simplify(over) + simplify(under)) + "z")
    return "".join(parts)


def _runs(ys: Sequence[float | None]) -> Iterator[list[int]]:
    """Indices of neighbouring values, one list for each stretch between gaps."""
    run: list[int] = []
    for i, y in enumerate(ys):
        if y is not None:
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def place_of(place: float, y: float, height: int) -> tuple[int, int]:
    """Horizontal and vertical units of a point in a plot of this height; both places are between 0 and 1."""
    return round(WIDE * place), round(2 * height * (1 - y))


def simplify(points: Sequence[tuple[int, int]], tolerance: float = 1.0) -> list[tuple[int, int]]:
    """Those of ``points`` without which the line would move by more than ``tolerance`` units up or down.

    Ramer-Douglas-Peucker with vertical distance; one unit is half a pixel, so nothing that can be seen is lost.
    """
    keep = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        (x0, y0), (x1, y1) = points[first], points[last]
        slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0
        farthest, distance = first, tolerance
        for i in range(first + 1, last):
            off = abs(points[i][1] - y0 - slope * (points[i][0] - x0))
            if off > distance:
                farthest, distance = i, off
        if farthest != first:
            keep.add(farthest)
            spans += [(first, farthest), (farthest, last)]
    return [points[i] for i in sorted(keep)]


def polyline(points: Sequence[tuple[int, int]]) -> str:
    """SVG path through the points. Absolute start and relative steps: half the bytes of absolute coordinates."""
    steps = " ".join(f"{x1 - x0} {y1 - y0}" for (x0, y0), (x1, y1) in pairwise(points))
    return f"M{points[0][0]} {points[0][1]}l" + steps.replace(" -", "-")
