"""Verdict, comparison and profile as text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.probe.records import LayerRecord, Profile
from layerscope.report import numbers
from layerscope.report.comparison import contradiction, track_records
from layerscope.report.looks import LABEL_LOOKS, LEVEL_LOOKS
from layerscope.report.measures import AXIS_TITLES, axis_number
from layerscope.report.micro import micro_sentence, trained
from layerscope.report.styled import Lines, Piece, ascii_only
from layerscope.report.verdicts import analytic_text, sentence
from layerscope.verdict.trunk import trunk
from layerscope.verdict.types import Axis, AxisName, Comparison, Verdict

#: Rows of a profile's table; a longer one is thinned out evenly rather than cut at the end.
MOST_ROWS = 40

_COLUMNS: tuple[tuple[AxisName, str], ...] = (("F", "growth"), ("I", "cosine"), ("B", "gradient"), ("N", "noise"))


def comparison_text(result: Comparison) -> Lines:
    """The table, then for every choice that is not healthy why and what to try."""
    out = Lines()
    seeds = f"seed{'s' if len(result.seeds) > 1 else ''} {' '.join(map(str, result.seeds))}" if result.seeds else ""
    where = [result.data, f"batch {result.batch_size}", numbers.shape(result.in_shape), seeds]
    _head(out, result.source, where)
    out.add()
    choices = result.ranking()
    rows: list[list[str | Piece]] = []
    for choice in choices:
        look, label = LABEL_LOOKS[choice.verdict.label], choice.verdict.label
        axes = [_axis_piece(name, choice.verdict.axis(name)) for name, _ in _COLUMNS]
        rows.append([choice.norm, Piece(f"{look.ascii} {label}", look.style), *axes])
    out.table(["norm", "verdict", *(title for _, title in _COLUMNS)], rows, left=2)
    out.add()
    for choice in choices:
        if choice.verdict.label != "healthy" or len(choices) == 1:
            look = LABEL_LOOKS[choice.verdict.label]
            out.add(Piece(choice.norm, "bold"), ": ", Piece(choice.verdict.label, look.style))
            _why(out, choice.verdict, choice.notes, most=2)
            out.add()
    disagreeing = [c.norm for c in choices if c.verdict.analytic and c.verdict.analytic.agrees is False]
    if disagreeing:
        out.paragraph(f"Theory and probe differ for {', '.join(disagreeing)}: see the HTML report.", style="dim")
    out.paragraph(
        "growth: of the mean square, per step. cosine: between samples; 1 = all look the same. gradient: first layer "
        "over last. noise: of the batch. Marks: + good, ~ caution, x bad, ? not known.",
        style="dim",
    )
    micro = next((c.verdict.micro for c in choices if c.verdict.micro), ())
    scored = [f"{c.norm} {c.verdict.score:.2f}" for c in choices if c.verdict.score is not None]
    if len(scored) > 1:
        listed = ", ".join(scored)
        out.paragraph(f"Learned score, 0 to 1: {listed}. It orders choices that share a verdict.", style="dim")
    if disagree := contradiction(choices):
        out.paragraph(disagree, style="dim")
    if records := track_records(choices):
        out.paragraph(records, style="dim")
    done = f"Trained on copies: {trained(micro)}" if micro else "Nothing was trained"
    out.paragraph(f"{done}; {numbers.seconds(result.seconds)}.", style="dim")
    return out


def verdict_text(verdict: Verdict) -> Lines:
    """Label, reason, axes, theory, remedies."""
    out = Lines()
    look = LABEL_LOOKS[verdict.label]
    out.add(Piece(f"{look.ascii} {verdict.label}", look.style))
    _why(out, verdict)
    if verdict.axes:
        out.add()
        for axis in verdict.axes:
            level = LEVEL_LOOKS[axis.level]
            first = f"{level.ascii} {AXIS_TITLES[axis.name][0]:<9} {axis_number(axis.name, axis.value):>8}  "
            out.paragraph(axis.text, first=first, rest=" " * 22, style=level.style if axis.level != "good" else "")
    if verdict.analytic:
        out.add()
        out.paragraph(analytic_text(verdict.analytic), first="theory: ", rest="        ", style="dim")
    if verdict.track_record:
        out.paragraph(verdict.track_record, style="dim")
    return out


def profile_text(profile: Profile) -> Lines:
    """One line for each site on the main path."""
    out = Lines()
    norm = "" if profile.norm == "as is" else f", {profile.norm}"
    facts = [f"batch {profile.batch_size}", numbers.shape(profile.in_shape), f"{len(profile.records)} call sites"]
    _head(out, f"{profile.source}{norm}", facts)
    out.add()
    path = trunk(profile)
    forward: Sequence[LayerRecord] = path.forward or profile.records
    shown = _thin(forward)
    gradients = {r.name: r.grad_scaled for r in (*path.backward, *forward)}
    out.table(
        ["layer", "kind", "shape", "mean sq.", "variance", "cosine", "gradient"],
        [
            [
                r.name, r.kind, numbers.shape(r.shape[1:]), numbers.short(r.ms), numbers.short(r.variance),
                numbers.cosine(r.cosine), numbers.short(gradients.get(r.name)),
            ]
            for r in shown
        ],
        left=3,
    )  # fmt: skip
    if len(shown) < len(forward):
        out.add(Piece(f"({len(shown)} of {len(forward)} layers on the main path)", "dim"))
    out.add()
    ends = [
        ("loss", numbers.short(profile.loss)),
        ("cosine at the classifier input", numbers.cosine(profile.readout_cosine)),
        ("before pooling", numbers.cosine(profile.readout_cosine_unpooled)),
        ("batch noise", numbers.short(profile.batch_noise)),
    ]
    out.paragraph("; ".join(f"{name} {value}" for name, value in ends if value != numbers.MISSING))
    for warning in profile.warnings:
        out.paragraph(warning, first="! ", rest="  ", style="yellow")
    return out


def _head(out: Lines, name: str, facts: Sequence[str]) -> None:
    """What was looked at and how, in one line where both fit."""
    told = ", ".join(fact for fact in facts if fact)
    if len(ascii_only(f"{name}  {told}")) <= out.width:
        out.add(Piece(name, "bold"), "  ", Piece(told, "dim"))
    else:
        out.paragraph(name, style="bold")
        out.paragraph(told, style="dim")


def _thin(records: Sequence[LayerRecord]) -> list[LayerRecord]:
    """At most ``MOST_ROWS`` of the records, evenly spread, first and last among them."""
    if len(records) <= MOST_ROWS:
        return list(records)
    step = (len(records) - 1) / (MOST_ROWS - 1)
    return [records[round(i * step)] for i in range(MOST_ROWS)]


def _axis_piece(name: AxisName, axis: Axis | None) -> Piece:
    if axis is None:
        return Piece("- ?", "dim")
    look = LEVEL_LOOKS[axis.level]
    return Piece(f"{axis_number(name, axis.value)} {look.ascii}", look.style if axis.level != "good" else "")


def _why(out: Lines, verdict: Verdict, notes: Sequence[str] = (), most: int = 9) -> None:
    if verdict.reason:
        out.paragraph(sentence(verdict.reason), first="  ")
    if verdict.micro:
        out.paragraph(sentence(micro_sentence(verdict.micro)), first="  ")
    for remedy in verdict.remedies[:most]:
        out.paragraph(remedy, first="  -> ", rest="     ")
    for note in notes:
        out.paragraph(note, first="  note: ", rest="        ", style="dim")
