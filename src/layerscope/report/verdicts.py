"""Verdicts as rows: who, why, what to try, and the four axes with small curves that line up over all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from layerscope.report import numbers
from layerscope.report.charts.frame import stretched
from layerscope.report.charts.lines import Line, draw_lines, even, trace
from layerscope.report.looks import LABEL_LOOKS, LEVEL_LOOKS, glyph, tag
from layerscope.report.markup import Html, el, join
from layerscope.report.measures import AXIS_TITLES, PANELS, axis_number
from layerscope.report.pictures import Pictures
from layerscope.report.scales import Scale
from layerscope.verdict.types import Analytic, Axis, AxisName, Choice, Verdict

_HEIGHT = 34
"""Pixels of a small curve."""


def verdict_rows(choices: Sequence[Choice], pictures: Pictures | None = None) -> Html:
    """One row for each choice, in the order given; the small curves share their scales over all rows."""
    sparks = _Sparks(pictures) if pictures is not None else None
    heads = [el("span", el("b", AXIS_TITLES[n][0]), el("i", AXIS_TITLES[n][1])) for n in AXIS_TITLES]
    head = el("div", el("span"), el("span"), *heads, class_="ls-row ls-row-head", aria_hidden="true")
    rows = [_row(choice, key, sparks) for key, choice in enumerate(choices)]
    return el("section", sparks.background if sparks else "", head, *rows, class_="ls-rows", aria_label="verdicts")


def _row(choice: Choice, key: int, sparks: _Sparks | None) -> Html:
    verdict = choice.verdict
    look = LABEL_LOOKS[verdict.label]
    who = el("header", el("h3", choice.norm), tag(look, verdict.label), class_="ls-who")
    cells = [_cell(name, verdict.axis(name), sparks.cell(name, key) if sparks else Html("")) for name in AXIS_TITLES]
    return el("article", who, el("div", why(verdict, choice.notes), class_="ls-why"), *cells, class_="ls-row", data_c=key)


def why(verdict: Verdict, notes: Sequence[str] = ()) -> Html:
    """Reason, remedies, and folded below them the axes in words, the theory, the track record and notes."""
    tries = el("ul", join(el("li", r) for r in verdict.remedies), class_="ls-try") if verdict.remedies else ""
    folded: list[object] = [
        el("p", glyph(LEVEL_LOOKS[a.level]), " ", el("b", AXIS_TITLES[a.name][0]), f" ({a.level}): {a.text}",
           f"; first at {a.where}" if a.where else "", ".")
        for a in verdict.axes
    ]  # fmt: skip
    if verdict.analytic:
        folded.append(el("p", el("b", "Theory"), ": ", analytic_text(verdict.analytic)))
    folded += [el("p", note) for note in notes]
    parts: list[object] = [el("p", sentence(verdict.reason))] if verdict.reason else []
    if tries:
        parts.append(tries)
    if verdict.track_record:
        parts.append(el("p", verdict.track_record, class_="ls-record"))
    if folded:
        summary = "Details" if not verdict.analytic or verdict.analytic.agrees is not False else "Details (theory differs)"
        parts.append(el("details", el("summary", summary), *folded))
    return join(parts)


def analytic_text(analytic: Analytic) -> str:
    """Prediction beside measurement, in one sentence."""
    says = [
        f"cosine {numbers.cosine(analytic.cosine)} at the last layer" if analytic.cosine is not None else "",
        f"gradient {numbers.times(analytic.rate)} per layer toward the input" if analytic.rate is not None else "",
        f"{analytic.growth} forward growth" if analytic.growth else "",
    ]
    predicted = ", ".join(s for s in says if s) or "nothing to predict"
    agrees = {True: "the probe agrees", False: "the probe differs", None: ""}[analytic.agrees]
    return ". ".join(p.rstrip(".") for p in (sentence(predicted, ""), sentence(agrees, ""), analytic.note) if p) + "."


def sentence(text: str, end: str = ".") -> str:
    """``text`` with a capital first letter and a full stop."""
    text = text.strip()
    text = text[:1].upper() + text[1:] if text[:2] != text[:2].upper() or text[1:2] == " " else text
    return text if not text or text[-1] in ".!?" else text + end


def _cell(name: AxisName, axis: Axis | None, spark: Html) -> Html:
    heading = el("span", AXIS_TITLES[name][0], class_="ls-cell-name")
    if axis is None:
        value = el("span", numbers.MISSING, class_="ls-value v-unknown")
    else:
        look = LEVEL_LOOKS[axis.level]
        spread = f"±{numbers.short(axis.spread, 2)}" if axis.spread else ""
        value = el(
            "span", glyph(look), " ", el("b", axis_number(name, axis.value)),
            el("small", spread) if spread else "", class_=f"ls-value {look.tone}", title=f"{axis.level}: {axis.text}",
        )  # fmt: skip
    return el("div", heading, spark, value, class_="ls-cell")


class _Sparks:
    """Small curves: this choice in its colour before all others in grey, on one scale for each axis."""

    def __init__(self, pictures: Pictures) -> None:
        self._lines: dict[AxisName, list[Line]] = {}
        self._scales: dict[AxisName, Scale] = {}
        grey = []
        for panel in PANELS:
            measure = panel.measures[0]
            lines = pictures.lines(panel, measure)
            if not any(v is not None for line in lines for v in line.values):
                continue
            self._lines[panel.axis], self._scales[panel.axis] = lines, pictures.scale(measure, lines)
            scale = self._scales[panel.axis]
            paths = ["".join(trace(even(len(n.values)), [scale.at(v) for v in n.values], _HEIGHT)) for n in lines]
            grey.append((panel.axis, el("path", d="".join(paths), class_="ls-line ls-other")))
        # Drawn once and used in every row: the page would otherwise be twice as large.
        self._name = "ls" + hashlib.sha1("".join(g for _, g in grey).encode()).hexdigest()[:8]
        groups = [el("g", group, id=f"{self._name}{axis}") for axis, group in grey]
        self.background = (
            el("svg", el("defs", *groups), width=0, height=0, class_="ls-defs", aria_hidden="true") if len(pictures.subjects) > 1 else Html("")
        )  # fmt: skip

    def cell(self, axis: AxisName, key: int) -> Html:
        """The small picture of one choice on one axis; empty where nothing was measured."""
        if axis not in self._lines:
            return Html("")
        others = stretched(_HEIGHT, el("use", href=f"#{self._name}{axis}")) if self.background else ""
        line, scale = self._lines[axis][key], self._scales[axis]
        drawn = draw_lines([line], scale, _HEIGHT, even(len(line.values)), named=False)
        return el("svg", others, drawn, class_="ls-spark", width="100%", height=_HEIGHT, aria_hidden="true")
