"""Standalone SVG panels: lines on a grid, one colour and dash per norm, a legend below. No library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, GAP, LEFT, TOP = 250, 190, 58, 52, 34

#: Colours that are told apart without red and green, each family with dashes of its own.
LOOKS = {
    "batch": ("#1b1b1b", ""),
    "variance": ("#1b1b1b", "6 3"),
    "layer": ("#0072b2", ""),
    "group:size=8": ("#0072b2", "6 3"),
    "group:size=2": ("#56b4e9", ""),
    "instance": ("#56b4e9", "2 2"),
    "frn": ("#cc79a7", ""),
    "evonorm-b0": ("#009e73", ""),
    "evonorm-s0:size=8": ("#009e73", "6 3"),
    "evonorm-s0:size=4": ("#009e73", "6 3"),
    "weight": ("#d55e00", ""),
    "sws": ("#d55e00", "6 3"),
    "none": ("#d55e00", "2 2"),
}
_CYCLE = ["#1b1b1b", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#999999"]


@dataclass(frozen=True)
class Panel:
    """One set of axes; ``lines`` maps a name to points (x, y), ``dots`` likewise without joining them."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    dots: bool = False
    log: bool = False
    log_x: bool = False
    high: float | None = None
    """Values above it are drawn at the edge."""


def look(name: str, index: int) -> tuple[str, str]:
    """Colour and dash of a name."""
    return LOOKS.get(name, (_CYCLE[index % len(_CYCLE)], ""))


def write(path: Path, panels: Sequence[Panel], columns: int = 4) -> None:
    """Draw panels in rows of ``columns`` into one SVG file."""
    names = list(dict.fromkeys(n for p in panels for n in p.lines))
    legend = [] if all(p.dots for p in panels) else names
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    wide = LEFT + columns * (WIDTH + GAP)
    per_line = max(1, wide // 150)
    tall = rows * (TOP + HEIGHT + 46) + 22 * (-(-len(legend) // per_line)) + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" font-family="sans-serif" '
        'font-size="11" fill="#1b1b1b">',
        f'<rect width="{wide}" height="{tall}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        left, top = LEFT + (i % columns) * (WIDTH + GAP), TOP + (i // columns) * (TOP + HEIGHT + 46)
        out += _panel(panel, names, left, top)
    base = rows * (TOP + HEIGHT + 46) + 12
    for i, name in enumerate(legend):
        colour, dash = look(name, i)
        x, y = LEFT + (i % per_line) * 150, base + 22 * (i // per_line)
        out.append(f'<path d="M{x} {y}h26" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        out.append(f'<text x="{x + 32}" y="{y + 4}">{html.escape(name)}</text>')
    path.write_text("\n".join([*out, "</svg>"]) + "\n")


def _panel(panel: Panel, names: Sequence[str], left: float, top: float) -> list[str]:
    points = [p for line in panel.lines.values() for p in line if math.isfinite(p[0])]
    xs = [_place(x, panel.log_x) for x, _ in points]
    ys = [_place(y, panel.log) for _, y in points if math.isfinite(y) and (not panel.log or y > 0)]
    if not xs or not ys:
        return []
    x0, x1 = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y0, y1 = min(ys), max(ys) if panel.high is None else min(max(ys), _place(panel.high, panel.log))
    y1 = y1 if y1 > y0 else y0 + 1

    def at(x: float, y: float) -> tuple[float, float]:
        v = y1 if not math.isfinite(y) else y0 if panel.log and y <= 0 else min(max(_place(y, panel.log), y0), y1)
        return left + (_place(x, panel.log_x) - x0) / (x1 - x0) * WIDTH, top + (y1 - v) / (y1 - y0) * HEIGHT

    out = [f'<text x="{left}" y="{top - 12}" font-weight="bold">{html.escape(panel.title)}</text>']
    for tick in _ticks(y0, y1):
        y = top + (y1 - tick) / (y1 - y0) * HEIGHT
        text = f"1e{tick:g}" if panel.log else f"{tick:g}"
        out.append(f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in sorted({x for x, _ in points}) if panel.log_x else _ticks(x0, x1):
        place = _place(tick, panel.log_x)
        x = left + (place - x0) / (x1 - x0) * WIDTH
        out.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 15}" text-anchor="middle">{tick:g}</text>')
    out.append(
        f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 30}" text-anchor="middle">{html.escape(panel.x)}</text>'
    )
    out.append(
        f'<text transform="translate({left - 38} {top + HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(panel.y)}</text>"
    )
    for name, line in panel.lines.items():
        colour, dash = look(name, names.index(name))
        placed = [at(x, y) for x, y in line if math.isfinite(x) and y == y]
        if panel.dots:
            for x, y in placed:
                flip = x > left + 0.75 * WIDTH
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" opacity="0.8"/>')
                out.append(
                    f'<text x="{x + (-5 if flip else 5):.1f}" y="{y + 2.5:.1f}" font-size="7" '
                    f'text-anchor="{"end" if flip else "start"}">{html.escape(name)}</text>'
                )
        elif placed:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.7" '
                f'stroke-dasharray="{dash}"/>'
            )
    return out


def _place(value: float, log: bool) -> float:
    return math.log10(max(value, 1e-30)) if log else value


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]
