"""Verdicts as rows: who, why, what to try, and the four axes with small curves that line up over all rows."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.report import numbers
from layerscope.report.looks import LABEL_LOOKS, LEVEL_LOOKS, glyph, tag
from layerscope.report.markup import Html, el, join
from layerscope.report.measures import AXIS_TITLES, axis_number
from layerscope.report.micro import micro_sentence
from layerscope.report.pictures import Pictures
from layerscope.verdict.types import Analytic, Axis, AxisName, Choice, Verdict

_HEIGHT = 34
"""Pixels of a small curve."""
_SHOWN = 2
"""Remedies that stand in the open; the others are folded away."""


def verdict_rows(choices: Sequence[Choice], pictures: Pictures | None = None) -> Html:
    """One row for each choice, in the order given; small curves from ``pictures`` (of the same choices) beside them."""
    heads = [el("span", el("b", title), el("i", unit)) for title, unit in AXIS_TITLES.values()]
    head = el("div", el("span"), el("span"), *heads, class_="ls-row ls-row-head", aria_hidden="true")
    alone = len(choices) == 1  # then there is room, and nothing to compare it with
    rows = [_row(choice, key, pictures, alone) for key, choice in enumerate(choices)]
    return el("section", head, *rows, class_="ls-rows", aria_label="verdicts")


def _row(choice: Choice, key: int, pictures: Pictures | None, unfolded: bool) -> Html:
    verdict = choice.verdict
    name = el("button", choice.norm, type="button") if pictures else choice.norm
    who = el("header", el("h3", name), tag(LABEL_LOOKS[verdict.label], verdict.label), class_="ls-who")
    cells = [
        _cell(name, verdict.axis(name), pictures.spark(name, key, _HEIGHT) if pictures else Html(""))
        for name in AXIS_TITLES
    ]
    return el(
        "article",
        who,
        el("div", why(verdict, choice.notes, unfolded), class_="ls-why"),
        *cells,
        class_="ls-row",
        data_c=key,
    )


def why(verdict: Verdict, notes: Sequence[str] = (), unfolded: bool = False) -> Html:
    """Reason, remedies, and (folded, as a rule) the axes in words, the theory, the score, the hit rate and notes."""
    folded: list[object] = [_tries(verdict.remedies[_SHOWN:])] if verdict.remedies[_SHOWN:] else []
    folded += [
        el("p", glyph(LEVEL_LOOKS[a.level]), " ", el("b", AXIS_TITLES[a.name][0]), f" ({a.level}): {a.text}",
           f"; first at {a.where}" if a.where else "", ".")
        for a in verdict.axes
    ]  # fmt: skip
    if verdict.analytic:
        folded.append(el("p", el("b", "Theory"), ": ", analytic_text(verdict.analytic)))
    if verdict.score is not None:
        score = f"{verdict.score:.2f}, from 0 to 1; it orders choices that share a verdict"
        folded.append(el("p", el("b", "Learned score"), ": ", score, "."))
    if verdict.track_record:
        folded.append(el("p", verdict.track_record))
    folded += [el("p", note) for note in notes]
    parts: list[object] = [el("p", sentence(verdict.reason))] if verdict.reason else []
    if verdict.remedies:
        parts.append(_tries(verdict.remedies[:_SHOWN]))
    if verdict.micro:
        parts.append(el("p", sentence(micro_sentence(verdict.micro)), class_="ls-record"))
    if folded:
        more = len(verdict.remedies) - _SHOWN
        hints = [f"{more} more to try" if more > 0 else "", "theory differs" if differs(verdict) else ""]
        summary = ", ".join(["Details", *(h for h in hints if h)])
        parts.append(el("details", el("summary", summary), *folded, open=unfolded))
    return join(parts)


def differs(verdict: Verdict) -> bool:
    """Theory and probe were compared and do not agree."""
    return verdict.analytic is not None and verdict.analytic.agrees is False


def _tries(remedies: Sequence[str]) -> Html:
    return el("ul", join(el("li", r) for r in remedies), class_="ls-try")


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
        spread = numbers.spread(axis_number(name, axis.value), axis.spread)
        value = el(
            "span", glyph(look), " ", el("b", axis_number(name, axis.value)),
            el("small", spread) if spread else "", class_=f"ls-value {look.tone}", title=axis.level,
        )  # fmt: skip
    return el("div", heading, spark, value, class_="ls-cell")
