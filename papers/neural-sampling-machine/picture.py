"""Draw results/percentiles.svg: how far the pre-activations of the last hidden layer wander while training.

python papers/neural-sampling-machine/picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, LEFT, TOP = 205, 150, 42, 34
PANELS = ("nsm", "relu, batch norm", "sign, straight-through", "noisy relu")


def main() -> None:
    content = json.loads((RESULTS / "percentiles.json").read_text())
    panels = [panel(i, name, content[f"{name}, lr 0.001"]["percentiles"]) for i, name in enumerate(PANELS)]
    total = LEFT + len(PANELS) * (WIDTH + 34)
    title = "15th, 50th and 85th percentile of the last hidden layer's pre-activation / its spread at the first step"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + TOP + 40}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/><title>{title}</title>'
        f'<text x="{LEFT}" y="14">{title} (rate 0.001, one epoch of 300 steps)</text>{"".join(panels)}</svg>\n'
    )
    (RESULTS / "percentiles.svg").write_text(svg)


def panel(index: int, name: str, rows: list[list[float]]) -> str:
    """One network: the band between the outer percentiles and the median, in units of the first spread."""
    unit = rows[0][2] - rows[0][0]
    centre = rows[0][1]
    values = [[(v - centre) / unit for v in row] for row in rows]
    bound = 3.0 if max(abs(v) for row in values for v in row) <= 3 else 20.0
    x0, middle = LEFT + index * (WIDTH + 34), TOP + HEIGHT / 2

    def point(step: int, value: float) -> str:
        return f"{x0 + step / (len(rows) - 1) * WIDTH:.1f},{middle - value / bound * HEIGHT / 2:.1f}"

    upper = [point(i, row[2]) for i, row in enumerate(values)]
    lower = [point(i, row[0]) for i, row in enumerate(values)]
    median = " ".join(point(i, row[1]) for i, row in enumerate(values))
    ticks = "".join(
        f'<text x="{x0 - 4}" y="{middle - v / bound * HEIGHT / 2 + 4:.1f}" text-anchor="end">{name}</text>'
        for v, name in ((-bound, f"-{bound:g}"), (0, "0"), (bound, f"+{bound:g}"))
    )
    return (
        f'<rect x="{x0}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>{ticks}'
        f'<polygon points="{" ".join(upper + lower[::-1])}" fill="#4477aa" fill-opacity="0.3"/>'
        f'<polyline points="{median}" fill="none" stroke="#223355" stroke-width="1.5"/>'
        f'<text x="{x0}" y="{TOP + HEIGHT + 16}">{name}</text>'
    )


if __name__ == "__main__":
    main()
