"""The card's picture from results/: smoothed training loss over steps, mean of the seeds and their range.

python papers/mixture-normalization/picture.py
"""

from __future__ import annotations

import statistics

from run import CASES, HERE, SMOOTH, STEPS, smoothed, stored

WIDTH, HEIGHT, LEFT, TOP = 360, 220, 46, 34
#: arm -> colour and dash; readable without telling red from green, and told apart by the dash as well
SHOWN = {
    "BN": ("#1b1b1b", ""),
    "BN, gain sqrt(3)": ("#1b1b1b", "5 3"),
    "GroupNorm, 4 groups": ("#999999", "2 2"),
    "Mode Norm, K=3": ("#0072b2", "7 3"),
    "MN all layers, T=1": ("#e69f00", "4 2"),
    "MN all layers": ("#d55e00", ""),
}


def panel(rows: list[dict[str, object]], case: str, left: float, top_value: float, low_value: float) -> list[str]:
    """One case: axes, and for every arm its mean curve on its range over seeds."""

    def at(step: float, value: float) -> str:
        x = left + (step - SMOOTH) / (STEPS - SMOOTH) * WIDTH
        y = TOP + (top_value - min(value, top_value)) / (top_value - low_value) * HEIGHT
        return f"{x:.1f},{y:.1f}"

    title = {"laws": "three contrast laws", "plain": "ordinary images"}[case]
    out = [f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    for value in (0.4, 0.6, 0.8, 1.0, 1.2):
        if low_value <= value <= top_value:
            y = float(at(SMOOTH, value).split(",")[1])
            out.append(f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#dddddd"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for step in (100, 200, 300, 400):
        x = float(at(step, low_value).split(",")[0])
        out.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{step}</text>')
    for arm, (colour, dash) in SHOWN.items():
        curves = [smoothed(r["losses"])[::6] for r in rows if r["case"] == case and r["arm"] == arm]
        if not curves:
            continue
        steps = [SMOOTH + 6 * i for i in range(len(curves[0]))]
        high = [at(s, max(c)) for s, c in zip(steps, zip(*curves, strict=True), strict=True)]
        low = [at(s, min(c)) for s, c in zip(steps, zip(*curves, strict=True), strict=True)]
        mean = [at(s, statistics.fmean(c)) for s, c in zip(steps, zip(*curves, strict=True), strict=True)]
        out.append(f'<polygon points="{" ".join(high + low[::-1])}" fill="{colour}" opacity="0.10"/>')
        out.append(
            f'<polyline points="{" ".join(mean)}" fill="none" stroke="{colour}" stroke-width="1.8" '
            f'stroke-dasharray="{dash}"/>'
        )
    return out


def main() -> None:
    rows = [row for case in CASES for row in stored(case)]
    total_width = LEFT + len(CASES) * (WIDTH + 40)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {TOP + HEIGHT + 78}" '
        'font-family="sans-serif" font-size="12" fill="#1b1b1b">',
        f'<rect width="{total_width}" height="{TOP + HEIGHT + 78}" fill="white"/>',
    ]
    for i, case in enumerate(CASES):
        out += panel(rows, case, LEFT + i * (WIDTH + 40), 1.2, 0.3)
    for i, (arm, (colour, dash)) in enumerate(SHOWN.items()):
        x, y = LEFT + (i % 3) * 240, TOP + HEIGHT + 42 + (i // 3) * 20
        out.append(f'<path d="M{x} {y - 4}h34" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        out.append(f'<text x="{x + 42}" y="{y}">{arm}</text>')
    (HERE / "loss.svg").write_text("\n".join([*out, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
