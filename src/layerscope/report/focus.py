"""How focusing is shown: the decision first, then what it cost, what was tried, and where it looked."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.methods.focus.records import Candidate, FocusReport, ProfileReport
from layerscope.report.charts.frame import Guide
from layerscope.report.charts.images import image_with_mask, images
from layerscope.report.charts.panels import View, figure
from layerscope.report.charts.scatter import Point, scatter
from layerscope.report.charts.tables import table
from layerscope.report.document import paragraph, section
from layerscope.report.looks import TONES
from layerscope.report.markup import Html, join
from layerscope.report.styled import Lines, Piece
from layerscope.report.views import register_view


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def _engines(report: FocusReport | ProfileReport) -> list[list[str]]:
    return [[e.name, _number(e.ms, 2, " ms"), e.note] for e in report.engines]


def _scored(report: FocusReport) -> list[Candidate]:
    return sorted((c for c in report.candidates if c.select_drop is not None), key=lambda c: c.predicted_ms)


def _timed(report: FocusReport) -> list[Candidate]:
    return [c for c in _scored(report) if c.speedup_best is not None]


_TIMED_HEADER = ("configuration", "active", "drop", "chance", "vs best", "at least", "vs eager", "vs full", "outcome")


_TIMED_HELD = (*_TIMED_HEADER[:-1], "drop, held back", "at most", "outcome")


def _timed_row(c: Candidate, *, held: bool = False) -> list[str]:
    return [
        str(c.config), f"{100 * c.active_share:.0f} %", _number(c.select_drop), _number(c.chance_drop),
        _number(c.speedup_best), _number(c.speedup_low), _number(c.speedup_eager), _number(c.speedup_full),
        *([_number(c.confirm_drop), _number(c.confirm_bound)] if held else []), c.outcome,
    ]  # fmt: skip


_MAPS_HEADER = ("map", "cut", "active", "drop", "chance", "margin", "map or chance")


def _maps(report: FocusReport) -> list[list[str]]:
    return [
        [
            m.config.relevance, m.config.cut, f"{100 * m.active_share:.0f} %", _number(m.drop), _number(m.chance_drop),
            f"{m.margin:.1f} +- {m.uncertainty:.1f}", m.verdict,
        ]
        for m in report.maps
    ]  # fmt: skip


def _setting(report: FocusReport) -> str:
    return (
        f"{report.metric}, at most {report.budget:g} points may be lost; {report.samples[0]} samples to select, "
        f"{report.samples[1]} held back to confirm; dense score {report.dense_score[0]:.1f} and "
        f"{report.dense_score[1]:.1f}; kernels {report.backend}, {report.threads} thread(s)"
    )


def focus_text(report: FocusReport) -> Lines:
    """The decision and its evidence for a terminal."""
    lines = Lines()
    style = "bold green" if report.decision == "focused" else "bold yellow"
    lines.add(f"{report.source}: ", Piece(report.decision, style))
    lines.paragraph(report.reason, first="  ")
    if report.chosen is not None:
        lines.paragraph(str(report.chosen.config), first="  ")
    lines.add("")
    lines.paragraph(_setting(report))
    lines.add("")
    lines.table(("dense engine", "per image", ""), _engines(report))
    if timed := _timed(report):
        lines.add("")
        lines.table(
            ("active", "drop", "chance", "vs best", "at least", "vs full", "outcome"),
            [[_timed_row(c)[i] for i in (1, 2, 3, 4, 5, 7, 8)] for c in timed],
        )
        lines.paragraph("drop, chance: points lost on the select half, by the chosen and by random positions.")
    if report.maps:
        lines.add("")
        lines.table(_MAPS_HEADER, _maps(report))
        lines.paragraph("margin: points that random positions of the same number lose more, +- 1.64 standard errors.")
    for note in (*report.notes, *report.unsupported):
        lines.paragraph(note, first="  - ", rest="    ")
    return lines


def focus_fragment(report: FocusReport) -> Html:
    """The same with the trade-off drawn and the areas of interest over the images."""
    chosen = [] if report.chosen is None else [paragraph(str(report.chosen.config))]
    parts = [section(f"Decision: {report.decision}", paragraph(report.reason), *chosen, paragraph(_setting(report)))]
    if scored := _scored(report):
        parts.append(_trade_off(report, scored))
    if report.pictures:
        shown = [
            image_with_mask(
                p.image, p.veil, alt=f"{p.name}, dark where nothing is computed",
                caption=f"{100 * p.active_share:.0f} % computed",
            )
            for p in report.pictures
        ]  # fmt: skip
        parts.append(
            section(
                "Area of interest",
                images(*shown),
                paragraph("Dark: not computed after the cut. Good: the dark hides nothing that matters."),
            )
        )
    parts.append(section("Dense engines", table(_engines(report), ("engine", "per image", ""))))
    if timed := _timed(report):
        parts.append(section("Timed end to end", table([_timed_row(c, held=True) for c in timed], _TIMED_HELD)))
    if report.maps:
        said = paragraph(
            "Margin: points that random positions of the same number lose more than the map's, +- 1.64 standard "
            "errors. Good: beats chance; a map that does not is no reason to compute one position rather than another."
        )
        parts.append(section("Relevance maps against chance", table(_maps(report), _MAPS_HEADER), said))
    listed = [
        [c.config, f"{c.predicted_ms:.2f}", f"{100 * c.active_share:.0f} %", _number(c.select_drop), c.outcome]
        for c in scored
    ]
    if listed:
        header = ("configuration", "predicted ms", "active", "drop", "outcome")
        parts.append(section("Everything that was scored", table(listed, header)))
    if report.notes or report.unsupported:
        parts.append(section("Notes", *(paragraph(n) for n in (*report.notes, *report.unsupported))))
    return join(parts)


def _trade_off(report: FocusReport, scored: Sequence[Candidate]) -> Html:
    chosen = [report.chosen is not None and c.config == report.chosen.config for c in scored]
    points = [
        Point("chosen" if mine else "", c.predicted_ms, c.select_drop or 0.0, TONES[1 if mine else 0])
        for c, mine in zip(scored, chosen, strict=True)
    ]
    front, least = [], float("inf")
    for i, c in enumerate(scored):
        if (c.select_drop or 0.0) < least:
            least = c.select_drop or 0.0
            front.append(i)
    picture, numbers = scatter(
        points, x_title="predicted ms per image", y_title="points lost on the select half", path=front,
        y_guides=[Guide(report.budget, f"budget {report.budget:g}")],
    )  # fmt: skip
    view = View(
        "cost and loss", "each point is one configuration; the line joins those that no other beats", picture, numbers
    )
    best = min((e.ms for e in report.engines if e.ms is not None), default=float("nan"))
    caption = (
        f"Good: low and to the left. Focusing pays below the budget line and left of {best:.2f} ms, the best dense."
    )
    return figure("What skipping costs and saves", [view], caption)


def profile_text(report: ProfileReport) -> Lines:
    """The cut points for a terminal."""
    lines = Lines()
    lines.add(f"{report.source}, input {tuple(report.in_shape)}, kernels {report.backend}, {report.threads} thread(s)")
    lines.table(("dense engine", "per image", ""), _engines(report))
    lines.add("")
    lines.table(
        ("cut", "grid", "bright", "time after", "convs", "full ms", "pays below"), [_cut(c)[:7] for c in report.cuts]
    )
    lines.paragraph(
        "pays below: active share at the cut under which it beats the best dense engine. bright: whether the channel "
        "sum means brightness there."
    )
    return lines


def _cut(c: object) -> list[str]:
    from layerscope.methods.focus.records import CutPoint

    assert isinstance(c, CutPoint)
    pays = "-" if c.break_even is None else "never" if c.break_even == 0 else f"{100 * c.break_even:.0f} %"
    return [
        c.name, f"{c.grid[0]}x{c.grid[1]}", c.brightness, f"{100 * c.region_share:.0f} %", str(c.convolutions),
        _number(c.full_ms), pays, c.note,
    ]  # fmt: skip


def profile_fragment(report: ProfileReport) -> Html:
    """The cut points as tables."""
    header = ("cut", "grid", "brightness", "time after", "convolutions", "full ms", "pays below active share", "note")
    return join(
        [
            section("Dense engines", table(_engines(report), ("engine", "per image", ""))),
            section("Cut points", table([_cut(c) for c in report.cuts], header)),
        ]
    )


register_view(
    FocusReport, text=focus_text, fragment=focus_fragment, title=lambda r: f"Focused convolutions: {r.source}"
)
register_view(ProfileReport, text=profile_text, fragment=profile_fragment, title=lambda r: f"Where to cut {r.source}")
