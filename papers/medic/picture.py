"""Draw results/front.svg: accuracy lost against attack success, and against relearning, mean over attacks and seeds.

python papers/medic/picture.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent))

from bed import ATTACKS
from reproduce import RESULTS, rows_in
from tables import MAIN, Rows, two_errors

WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 300, 52, 30, 76
LOST = (-0.5, 6.0)
#: Readable without telling red from green: what trains a fresh network, what tunes the poisoned one, what prunes it.
GROUPS = {
    "#d55e00": ("medic",),
    "#0072b2": ("distill", "uniform clone", "scratch"),
    "#555555": ("fst", "fine-tune lr=0.1", "fine-tune lr=0.03", "fine-tune lr=0.01", "ft-sam", "nad"),
    "#aa8800": ("clp", "anp", "fine-prune"),
}
Point = tuple[str, float, float, float, float]


def points(rows: Rows, relearning: bool) -> list[Point]:
    """(defence, accuracy lost, its two standard errors, height, its two standard errors), in %."""
    made = []
    for defence in rows.defences:
        cells = [c for c in rows.cells(defence, ATTACKS) if c[2]]
        if len(cells) < 2:
            continue
        lost = [100 * (before["acc"] - row["acc"]) for row, before, _ in cells]
        height = [
            100 * (mean(row["relearn"]) - mean(floor["relearn"]) if relearning else row["asr"])
            for row, _, floor in cells
            if floor
        ]
        made.append((defence, mean(lost), two_errors(lost), mean(height), two_errors(height)))
    return made


def panel(
    left: float, title: str, low: float, high: float, ticks: Sequence[float], wanted: float, found: Sequence[Point]
) -> list[str]:
    """Axes, the corner that was wanted, and a cross for every defence."""

    def x(lost: float) -> float:
        return left + (lost - LOST[0]) / (LOST[1] - LOST[0]) * WIDTH

    def y(value: float) -> float:
        return TOP + (high - min(max(value, low), high)) / (high - low) * HEIGHT

    bottom = TOP + HEIGHT
    out = [
        f'<rect x="{x(LOST[0]):.1f}" y="{y(wanted):.1f}" width="{x(2) - x(LOST[0]):.1f}" '
        f'height="{bottom - y(wanted):.1f}" fill="#e4f0e4"/>',
        f'<text x="{left}" y="{TOP - 12}" font-weight="bold">{title}</text>',
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbbbbb"/>',
        f'<text x="{left + WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">points of accuracy lost</text>',
    ]
    out += [f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in ticks]
    out += [f'<text x="{x(lost):.1f}" y="{bottom + 16}" text-anchor="middle">{lost}</text>' for lost in range(7)]
    colours = {name: colour for colour, names in GROUPS.items() for name in names}
    heights = labels([(x(p[1]) + 7, y(p[3]), p[0]) for p in found])
    for (name, lost, across, value, along), height in zip(found, heights, strict=True):
        colour = colours.get(name, "#555555")
        out.append(
            f'<path d="M{x(lost - across):.1f} {y(value):.1f}H{x(lost + across):.1f}M{x(lost):.1f} '
            f'{y(value - along):.1f}V{y(value + along):.1f}" stroke="{colour}" stroke-width="1.4" opacity="0.6"/>'
            f'<circle cx="{x(lost):.1f}" cy="{y(value):.1f}" r="3.2" fill="{colour}"/>'
            f'<text x="{x(lost) + 7:.1f}" y="{height:.1f}" fill="{colour}">{name}</text>'
        )
    return out


def labels(places: Sequence[tuple[float, float, str]], apart: float = 13, letter: float = 6.6) -> list[float]:
    """Heights for the names, the lowest point first: each above those that it would cover."""
    made: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: -places[i][1]):
        left, height, name = places[i]
        beside = [
            made[k]
            for k in made
            if places[k][0] < left + letter * len(name) and left < places[k][0] + letter * len(places[k][2])
        ]
        height -= 4
        while any(abs(height - other) < apart for other in beside):
            height -= 1
        made[i] = height
    return [made[i] for i in range(len(places))]


def main() -> None:
    rows = Rows(rows_in(RESULTS).values(), "resnet", 3000, "60000x8/256", MAIN)
    total, tall = LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + 44
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {tall}" font-family="sans-serif" '
        'font-size="12" fill="#1b1b1b">',
        f'<rect width="{total}" height="{tall}" fill="white"/>',
        "<title>Accuracy lost against attack success and relearning; the shaded corner is what was wanted</title>",
        *panel(LEFT, "attack success left, %", 0, 100, (0, 20, 40, 60, 80, 100), 6, points(rows, False)),
        *panel(
            LEFT + WIDTH + GAP, "relearned above a clean network, points", -20, 80, (-20, 0, 20, 40, 60, 80), 0,
            points(rows, True),
        ),
        "</svg>",
    ]  # fmt: skip
    (RESULTS / "front.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
