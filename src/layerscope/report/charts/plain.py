"""Line chart and heat map for any result: the same drawing as the depth figures, without anything about layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerscope.errors import LayerscopeError
from layerscope.report import numbers
from layerscope.report.charts.frame import LABEL_GAP, Guide, framed, letters, percent, plot, y_axis
from layerscope.report.charts.heat import GAP, ROW, draw_row, height_of, shade
from layerscope.report.charts.lines import Line, draw_lines
from layerscope.report.charts.scatter import x_axis
from layerscope.report.charts.tables import numbers_table
from layerscope.report.markup import Html, el
from layerscope.report.scales import Kind, fit

#: Rows that the folded table has at most; longer series are thinned out there (the picture shows all).
_MOST_ROWS = 200


def line_chart(
    lines: Sequence[Line],
    *,
    x: Sequence[float] | None = None,
    x_title: str = "",
    y_title: str = "",
    x_kind: Kind = "linear",
    y_kind: Kind = "linear",
    guides: Sequence[Guide] = (),
    write: Callable[[float | None], str] = numbers.short,
    height: int = 240,
) -> Html:
    """Series over a common x, each named at its end.

    Args:
        lines: the series; all as long as ``x``.
        x: their horizontal values; 0, 1, 2, ... when left out.
        x_title: what runs to the right.
        y_title: what runs upward.
        x_kind: horizontal scale.
        y_kind: vertical scale.
        guides: horizontal lines that say what a value means.
        write: how a value is written in the table and beside the pointer.
        height: pixels.

    Raises:
        LayerscopeError: a series that is not as long as ``x``.
    """
    across = list(x) if x is not None else [float(i) for i in range(max((len(n.values) for n in lines), default=0))]
    for line in lines:
        if len(line.values) != len(across):
            raise LayerscopeError(f"line {line.name!r} has {len(line.values)} values for {len(across)} places on x")
    x_scale = fit(x_kind, across, include=(min(across), max(across)) if across else ())
    y_scale = fit(y_kind, [v for n in lines for part in (n.values, n.low, n.high) for v in part or ()])
    placed = [(i, p) for i, v in enumerate(across) if (p := x_scale.at(v)) is not None]
    kept = [i for i, _ in placed]
    places = [p for _, p in placed]
    height = max(height, LABEL_GAP * len(lines))
    step = max(1, -(-len(kept) // _MOST_ROWS))
    drawn = [_keep(line, kept) for line in lines]
    picture = plot(
        height + 40,
        y_axis(y_scale, height, guides),
        x_axis(x_scale, height, x_title),
        draw_lines(drawn, y_scale, height, places),
        label=f"{y_title or 'values'} over {x_title or 'x'} for " + ", ".join(n.name for n in lines),
        columns=len(places[::step]),
        at=places[::step],
    )
    rows = [(numbers.short(across[i], 6), "", [write(n.values[i]) for n in lines]) for i in kept[::step]]
    heading = el("p", y_title, class_="ls-y-title") if y_title else ""
    names = [n.name for n in lines]
    return el("div", heading, framed(picture, letters(names)), numbers_table(names, rows),
              class_="ls-chart")  # fmt: skip


def _keep(line: Line, kept: Sequence[int]) -> Line:
    """The line at the kept indices."""

    def part(values: Sequence[float | None] | None) -> list[float | None] | None:
        return None if values is None else [values[i] for i in kept]

    mark = kept.index(line.mark) if line.mark in kept and line.mark is not None else None
    return Line(line.name, part(line.values) or [], part(line.low), part(line.high), line.tone, line.look, mark)


def heatmap(
    matrix: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    strength: Callable[[float], float],
    x_title: str = "",
    write: Callable[[float | None], str] = numbers.short,
) -> Html:
    """Rows of coloured cells.

    Args:
        matrix: [row][column]; None leaves a cell empty.
        rows: their names.
        columns: their names, told by the pointer and the table.
        strength: from a value to its colour: 0 is the paper, 1 the orange end, -1 the blue end.
        x_title: what runs to the right.
        write: how a value is written in the table and beside the pointer.

    Raises:
        LayerscopeError: names that do not match the matrix.
    """
    if len(matrix) != len(rows) or any(len(r) != len(columns) for r in matrix):
        raise LayerscopeError(f"heatmap: {len(rows)} x {len(columns)} names do not match the matrix")
    drawn = [
        draw_row([None if v is None else shade(strength(v)) for v in values], k * (ROW + GAP), k, name=name)
        for k, (name, values) in enumerate(zip(rows, matrix, strict=True))
    ]
    height = height_of(len(rows))
    title = el("text", f"{x_title} →", class_="ls-x-title", x=percent(1), y=height + 16) if x_title else ""
    picture = plot(
        height + 22,
        *drawn,
        title,
        label=f"heat map of {', '.join(rows)} over {len(columns)} columns",
        columns=len(columns),
    )
    table = numbers_table(rows, [(c, "", [write(r[i]) for r in matrix]) for i, c in enumerate(columns)])
    return el("div", framed(picture, letters(rows)), table, class_="ls-chart")
