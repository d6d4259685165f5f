"""Layers on one axis, choices on the other: curves above, the same numbers as a heat map below, one shared axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerscope.report.charts.frame import LABEL_GAP, Guide, framed, letters, percent, plot, y_axis
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
_ROOMY = 0.3
"""Share of the width above which the name fits on a phone, too."""


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
    name_curves: str = "",
    mirrored: bool = False,
) -> tuple[Html, Html]:
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
        name_curves: see :func:`lines.draw_lines`.
        mirrored: names stand on the left, for what runs from the output to the input.

    Returns:
        The picture, and the folded table of its numbers.
    """
    height = curves_height(len(lines))
    top = height + _SPACE
    heat = height_of(len(lines))
    tones = with_tones(lines)
    rows = [
        draw_row(
            [shade(s) for s in row], top + k * (height_of(2) - height_of(1)), k,
            name=line.name, look=line.look, tone=tones[k], mark=line.mark, mirrored=mirrored,
        )
        for k, (line, row) in enumerate(zip(lines, strengths, strict=True))
    ]  # fmt: skip
    picture = plot(
        top + heat + _AXIS,
        _stage_marks(stages, len(columns), top + heat),
        y_axis(scale, height, guides, mirrored),
        draw_lines(lines, scale, height, even(len(columns)), name_curves=name_curves, mirrored=mirrored),
        *rows,
        label=label,
        columns=len(columns),
    )
    table = numbers_table(
        [line.name for line in lines],
        [(c.name, c.about, [write(line.values[i]) for line in lines]) for i, c in enumerate(columns)],
    )
    return framed(picture, letters([line.name for line in lines]), mirrored), table


def curves_height(count: int) -> int:
    """Pixels of the curves' part: enough for the names of ``count`` lines."""
    return max(210, LABEL_GAP * count)


def _stage_marks(stages: Sequence[tuple[int, str]], count: int, bottom: float) -> Html:
    parts = []
    ends = [start for start, _ in stages[1:]] + [count]
    for (start, name), end in zip(stages, ends, strict=True):
        if start:
            x = percent(start / count)
            parts.append(el("line", class_="ls-stage", x1=x, x2=x, y1=0, y2=bottom + 6))
        if (end - start) / count >= _NARROWEST:
            middle = percent((start + end) / 2 / count)
            tight = " ls-tight" if (end - start) / count < _ROOMY else ""
            parts.append(el("text", name, class_="ls-stage-name" + tight, x=middle, y=bottom + 17))
    return join(parts)
