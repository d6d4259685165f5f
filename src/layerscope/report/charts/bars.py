"""Named bars: a list of amounts to compare at a glance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from layerscope.report import numbers
from layerscope.report.looks import TONES
from layerscope.report.markup import Html, el, join


def bars(
    items: Sequence[tuple[str, float | None]],
    *,
    write: Callable[[float | None], str] = numbers.short,
    most: float | None = None,
    tone: str = TONES[0],
) -> Html:
    """One bar for each (name, amount), from 0 to ``most`` (the largest amount when left out), the number beside it.

    Amounts that are missing, not finite or negative have no bar, only their number.
    """
    sizes = [v for _, v in items if v is not None and math.isfinite(v)]
    top = most if most is not None else max(sizes, default=0.0)
    rows = []
    for name, amount in items:
        drawable = amount is not None and math.isfinite(amount) and amount > 0 and top > 0
        share = min((amount or 0.0) / top, 1.0) if drawable else 0.0
        rows.append(join([
            el("span", name),
            el("span", el("i", style=f"width:{100 * share:.2f}%"), class_=f"ls-bar {tone}", aria_hidden="true"),
            el("span", write(amount)),
        ]))  # fmt: skip
    return el("div", join(rows), class_="ls-bars")
