"""Rows of coloured cells: faint is quiet, strong is loud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from layerscope.report.charts.frame import name_beside, percent
from layerscope.report.looks import Look
from layerscope.report.markup import Html, el, join
from layerscope.report.palette import STEPS

ROW = 14
GAP = 3
#: Class of a cell whose value is not a number.
BROKEN = "hx"


def shade(strength: float | None) -> str | None:
    """CSS class for a strength in [-1, 1]: 0 is the paper, -1 the blue end, 1 the orange end; None has no cell."""
    if strength is None:
        return None
    if math.isnan(strength):
        return BROKEN
    return f"h{STEPS + round(STEPS * min(max(strength, -1.0), 1.0))}"


def draw_row(
    cells: Sequence[str | None],
    y: float,
    key: int,
    *,
    name: str = "",
    look: Look | None = None,
    tone: str = "",
    mark: int | None = None,
    mirrored: bool = False,
) -> Html:
    """One row of cells with its name in the right gutter (left if ``mirrored``) and a dot in the cell ``mark``."""
    count = len(cells)
    paths: dict[str, list[str]] = {}
    broken: list[Html] = []
    start = 0
    for shade_class, group in groupby(cells):
        width = len(list(group))
        if shade_class is not None:
            paths.setdefault(shade_class, []).append(f"M{start} 0h{width}v1H{start}z")
        if shade_class == BROKEN:
            middle = percent((start + width / 2) / count)
            broken.append(el("text", "NaN", class_="ls-nan", x=middle, y=y + ROW / 2, dy=".35em"))
        start += width
    drawn = [el("path", class_=c, d="".join(d)) for c, d in paths.items()]
    parts: list[object] = [
        el("line", class_="ls-grid", x2="100%", y1=y + ROW / 2, y2=y + ROW / 2) if None in cells else "",
        el("svg", *drawn, y=y, width="100%", height=ROW, viewBox=f"0 0 {count} 1", preserveAspectRatio="none",
           shape_rendering="crispEdges"),
    ]  # fmt: skip
    parts += broken
    if mark is not None:
        parts.append(el("circle", class_="ls-first", cx=percent((mark + 0.5) / count), cy=y + ROW / 2, r=3.2))
    if name:
        label = name_beside(name, y + ROW / 2, look, mirrored)
        parts.append(el("svg", label, x=None if mirrored else "100%", class_=tone or None))
    return el("g", *parts, data_c=key)


def height_of(rows: int) -> int:
    """Pixels that ``rows`` rows take."""
    return rows * (ROW + GAP) - GAP if rows else 0


def key_bar(texts: Sequence[str], two_sided: bool) -> Html:
    """The colours with their values, evenly spaced from the lowest to the highest."""
    colours = ",".join(f"var(--h{i})" for i in range(0 if two_sided else STEPS, 2 * STEPS + 1, STEPS // 2))
    bar = el("span", class_="ls-key-bar", style=f"background:linear-gradient(90deg,{colours})")
    return el(
        "span", bar, el("span", join(el("i", t) for t in texts), class_="ls-key-text"), class_="ls-key", role="img",
        aria_label="colour scale: " + ", ".join(texts),
    )  # fmt: skip
