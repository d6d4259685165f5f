"""A few real training steps, where they were asked for: one sentence for each choice, one picture for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from layerscope.report import numbers
from layerscope.report.charts.lines import Line
from layerscope.report.charts.panels import View, figure
from layerscope.report.charts.plain import line_chart
from layerscope.report.layers import series
from layerscope.report.looks import LABEL_LOOKS
from layerscope.report.markup import Html
from layerscope.verdict.types import Choice, MicroTrain


def trained(micro: Sequence[MicroTrain]) -> str:
    """What was done: ``20 steps at learning rate 0.1, batch size 32``; empty for nothing."""
    if not micro:
        return ""
    return f"{micro[0].steps} steps at learning rate {micro[0].lr:g}, batch size {micro[0].batch_size}"


def micro_sentence(micro: Sequence[MicroTrain]) -> str:
    """What a few real steps did to the loss, over all seeds; empty where none were done."""
    if not micro:
        return ""
    lost = [m for m in micro if m.diverged]
    if lost:
        of = f" at {len(lost)} of {len(micro)} seeds" if len(micro) > 1 else ""
        steps = [m.diverged_at for m in lost if m.diverged_at is not None]
        when = f", first at step {min(steps)}" if steps else ""
        return f"{trained(micro)}: the loss diverged{of}{when}."
    before = median(m.losses[0] for m in micro if m.losses) if any(m.losses for m in micro) else math.nan
    drop = 100 * median(m.drop for m in micro)
    change = f"fell by {drop:.0f} %" if drop > 0 else f"rose by {-drop:.0f} %" if drop < 0 else "did not change"
    return f"{trained(micro)}: the loss, {numbers.short(before)} at first, {change}."


def micro_figure(choices: Sequence[Choice]) -> Html:
    """The losses of all choices over the steps; nothing where no steps were done."""
    shown = [c for c in choices if any(m.losses for m in c.verdict.micro)]
    if not shown:
        return Html("")
    length = max(len(m.losses) for c in shown for m in c.verdict.micro)
    chart = line_chart(
        [_line(c, length) for c in shown],
        x=[float(i) for i in range(length)],
        x_title="step",
        y_title="training loss",
        y_kind="log",
    )
    what = trained(shown[0].verdict.micro)
    return figure(
        "Trial: a few real steps",
        [View("training loss", f"{what}, on a copy of the network", chart)],
        "Good: the loss falls from the first steps on. Bad: it stays where it was, or climbs out of the picture. This "
        "is the one measurement here that sees the learning rate.",
        question="Does the loss fall when training starts in earnest?",
    )


def _line(choice: Choice, length: int) -> Line:
    look = LABEL_LOOKS[choice.verdict.label]
    rows: list[list[float | None]] = [
        [*m.losses, *([None] * (length - len(m.losses)))] for m in choice.verdict.micro if m.losses
    ]
    along = series(rows)
    return Line(choice.norm, along.middle, along.low, along.high, look.tone, look)
