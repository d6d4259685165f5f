"""A comparison as HTML: who trains, why, and where along the layers it shows."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.report import explain, numbers
from layerscope.report.frontier import frontier
from layerscope.report.looks import LABEL_LOOKS
from layerscope.report.markup import Html, el, join
from layerscope.report.micro import micro_figure, trained
from layerscope.report.pictures import Pictures, Subject
from layerscope.report.verdicts import verdict_rows
from layerscope.verdict import evidence
from layerscope.verdict.types import LABELS, Choice, Comparison, Label

#: What a label says of training, after a list of names.
SAYS: dict[Label, str] = {
    "healthy": "should train well",
    "slow": "will train slowly",
    "very slow": "will train very slowly",
    "unstable": "will be unstable at a normal learning rate",
    "fails": "will fail",
    "unknown": "could not be judged",
}


def title(result: Comparison) -> str:
    """One line that says what was compared."""
    count = len(result.choices)
    return result.source if count == 1 else f"{result.source}: {count} normalization choices"


def fragment(result: Comparison) -> Html:
    """The whole report, without page and title."""
    choices = result.ranking()
    pictures = Pictures([Subject.of(c) for c in choices])
    figures = pictures.figures()
    return join(
        [
            el("p", lead(choices, result.source), class_="ls-lede"),
            el("p", facts(result), class_="ls-facts"),
            verdict_rows(choices, pictures),
            # a single row says it itself
            el("p", contradiction(choices), class_="ls-facts") if contradiction(choices) else "",
            el("p", track_records(choices), class_="ls-facts") if len(choices) > 1 else "",
            *(figures or [el("p", "No layer was measured, so there is nothing to draw.", class_="ls-facts")]),
            micro_figure(choices),
            frontier(choices),
            explain.how_to_read(),
            explain.what_it_cannot_tell(),
            explain.repeat(result.command, result.versions),
        ]
    )


def contradiction(choices: Sequence[Choice]) -> str:
    """What to make of it where a choice with a worse label has the higher learned score; empty where none has."""
    judged = [c for c in choices if c.verdict.score is not None and c.verdict.label != "unknown"]
    pairs = [
        (round(worse.verdict.score or 0.0, 2) - round(better.verdict.score or 0.0, 2), better, worse)
        for better in judged
        for worse in judged
        if LABELS.index(worse.verdict.label) > LABELS.index(better.verdict.label)
    ]
    gap, better, worse = max(pairs, key=lambda p: p[0], default=(0.0, None, None))
    if better is None or worse is None or gap <= 0:
        return ""
    said = [f"{c.norm} ({c.verdict.label}, {c.verdict.score:.2f})" for c in (worse, better)]
    return (
        f"Label and learned score disagree, as on {said[0]} and {said[1]}: the label names something measured here, "
        "the score is a fit to small networks that were trained; a few real steps (--micro-steps) of both decide."
    )


def track_records(choices: Sequence[Choice]) -> str:
    """How often verdicts of the kinds given here were right; empty where that is not known."""
    judged = [c.verdict.label for c in choices if c.verdict.track_record]
    return evidence.track_records(judged, "micro" if any(c.verdict.micro for c in choices) else "init")


def lead(choices: Sequence[Choice], source: str) -> Html:
    """The result in one sentence: for each label that occurs, best first, who has it."""
    parts = []
    for label in LABELS:
        norms = [c.norm for c in choices if c.verdict.label == label]
        # Nothing is compared with it: "resnet20 should train well" says more than "as is should train well".
        names = [el("code", source if len(choices) == 1 and n == "as is" else n) for n in norms]
        if names:
            listed = join([join(names[:-1], ", "), " and ", names[-1]]) if len(names) > 1 else names[0]
            parts.append(join([listed, " ", el("b", SAYS[label], class_=LABEL_LOOKS[label].tone)]))
    return join([join(parts, "; "), "."]) if parts else Html("Nothing was compared.")


def facts(result: Comparison) -> str:
    """What was probed, in one line."""
    seeds = ", ".join(map(str, result.seeds))
    micro = next((c.verdict.micro for c in result.choices if c.verdict.micro), ())
    done = f"and {trained(micro)}, on copies" if micro else "nothing was trained"
    parts = [
        f"data {result.data}" if result.data else "",
        f"batch size {result.batch_size}",
        f"input {numbers.shape(result.in_shape)}" if result.in_shape else "",
        f"seed{'s' if len(result.seeds) > 1 else ''} {seeds}" if seeds else "",
        f"one forward and one backward pass each, {done}, {numbers.seconds(result.seconds)} in all",
    ]
    return " · ".join(p for p in parts if p)
