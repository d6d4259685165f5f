"""Layers on one axis, choices on the other: curves above, the same numbers as a heat map below, one shared axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerscope.report.charts.frame import LABEL_GAP, Guide, gutter, percent, plot, y_axis
from layerscope.report.charts.heat import draw_row, height_of, shade
from layerscope.report.charts.lines import Line, draw_lines, even, with_tones
from layerscope.report.charts.tables import numbers_table
from layerscope.report.markup import Html, el, join
from layerscope.report.scales import Scale

_SPACE = 16
"""Pixels between the curves and the heat map."""
_AXIS = 24
"""Pixels below the heat map for the names of the stages."""
_NARROWEST = 0.09
"""Share of the width below which a stage stays without its name."""


@dataclass(frozen=True)
class Column:
    """One place on the layer axis: its name, and anything else worth telling (a shape, a class name)."""

    name: str
    about: str = ""


def depth_panel(
    lines: Sequence[Line],
    columns: Sequence[Column],
    scale: Scale,
    *,
    label: str,
    strengths: Sequence[Sequence[float | None]],
    stages: Sequence[tuple[int, str]] = (),
    guides: Sequence[Guide] = (),
    write: Callable[[float | None], str],
    height: int = 210,
) -> Html:
    """One quantity over depth for every choice.

    Args:
        lines: one for each choice; their values, bands, tones and marked sites.
        columns: the sites, in execution order.
        scale: vertical axis of the curves.
        label: what the picture shows, for those who cannot see it.
        strengths: the heat map, [choice][site] in [-1, 1] (see :func:`heat.shade`); None leaves the cell empty.
        stages: (first index, name) of stretches of sites that belong together.
        guides: horizontal lines that say what a value means.
        write: how a value is written in the table and beside the pointer.
        height: pixels of the curves' part.
    """
    height = max(height, LABEL_GAP * len(lines))
    top = height + _SPACE
    heat = height_of(len(lines))
    tones = with_tones(lines)
    rows = [
        draw_row(
            [shade(s) for s in row], top + k * (height_of(2) - height_of(1)), k,
            name=line.name, look=line.look, tone=tones[k], mark=line.mark,
        )
        for k, (line, row) in enumerate(zip(lines, strengths, strict=True))
    ]  # fmt: skip
    picture = plot(
        top + heat + _AXIS,
        _stage_marks(stages, len(columns), top + heat),
        y_axis(scale, height, guides),
        draw_lines(lines, scale, height, even(len(columns))),
        *rows,
        label=label,
        columns=len(columns),
    )
    table = numbers_table(
        [line.name for line in lines],
        [(c.name, c.about, [write(line.values[i]) for line in lines]) for i, c in enumerate(columns)],
    )
    return join([el("div", picture, class_="ls-frame", style=gutter([line.name for line in lines])), table])


def _stage_marks(stages: Sequence[tuple[int, str]], count: int, bottom: float) -> Html:
    parts = []
    ends = [start for start, _ in stages[1:]] + [count]
    for (start, name), end in zip(stages, ends, strict=True):
        if start:
            x = percent(start / count)
            parts.append(el("line", class_="ls-stage", x1=x, x2=x, y1=0, y2=bottom + 6))
        if (end - start) / count >= _NARROWEST:
            middle = percent((start + end) / 2 / count)
            parts.append(el("text", name, class_="ls-stage-name", x=middle, y=bottom + 17))
    return join(parts)
