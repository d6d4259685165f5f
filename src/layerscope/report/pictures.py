"""The layers of several networks on common axes, drawn small (beside the verdicts) and large (the figures)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from layerscope.probe.records import Profile
from layerscope.report import numbers
from layerscope.report.charts.depth import Column, curves_height, depth_panel
from layerscope.report.charts.frame import WIDE, Guide
from layerscope.report.charts.heat import key_bar
from layerscope.report.charts.lines import Line
from layerscope.report.charts.panels import View, figure
from layerscope.report.layers import LayerAxis, Path, layer_axis, series
from layerscope.report.limits import gradient_guides, informative_guides
from layerscope.report.looks import LABEL_LOOKS, TONES, Look
from layerscope.report.markup import Html, el
from layerscope.report.measures import PANELS, Measure, Panel
from layerscope.report.scales import Scale, fit
from layerscope.verdict.types import AxisName, Choice

#: Name of the column behind the last site, in the pictures of quantities that are also known there.
READOUT = "classifier input"


@dataclass(frozen=True)
class Subject:
    """One network in the pictures: its name, its profiles over seeds, and how its verdict looks."""

    name: str
    profiles: tuple[Profile, ...]
    tone: str = ""
    look: Look | None = None
    first_bad: dict[AxisName, str] = field(default_factory=dict)
    """For each axis the first layer at which its problem shows."""

    @classmethod
    def of(cls, choice: Choice) -> Subject:
        """A choice of a comparison."""
        look = LABEL_LOOKS[choice.verdict.label]
        where = {a.name: a.where for a in choice.verdict.axes if a.where}
        return cls(choice.norm, choice.profiles, look.tone, look, where)


class Pictures:
    """Common layer axes of several subjects, and what is drawn on them."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = tuple(subjects)
        groups = [s.profiles for s in subjects]
        self.axes: dict[Path, LayerAxis] = {p: layer_axis(groups, p) for p in ("forward", "backward")}
        # Ids must differ between the reports of one notebook and be the same for the same report.
        self._id = "ls" + hashlib.sha1(repr([(s.name, s.profiles) for s in subjects]).encode()).hexdigest()[:8]

    def lines(self, panel: Panel, measure: Measure) -> list[Line]:
        """One quantity of every subject; subjects that were not measured have a line of gaps."""
        axis = self.axes[panel.path]
        found = []
        for subject, seeds in zip(self.subjects, axis.records, strict=True):
            rows = [[None if r is None else measure.pick(r) for r in row] for row in seeds]
            if measure.readout is not None:
                rows = [[*row, measure.readout(p)] for row, p in zip(rows, subject.profiles, strict=True)]
            along = series(rows, measure.relative_to_last)
            values = along.middle or (None,) * len(self.columns(panel, measure))
            mark = self._mark(subject, panel, measure)
            apart = int(measure.readout is not None)
            found.append(Line(subject.name, values, along.low, along.high, subject.tone, subject.look, mark, apart))
        return found

    def columns(self, panel: Panel, measure: Measure) -> list[Column]:
        """The places on the panel's layer axis."""
        sites = [
            Column(s.name, " ".join(p for p in (s.kind, numbers.shape(s.shape)) if p))
            for s in self.axes[panel.path].sites
        ]
        return [*sites, Column(READOUT)] if measure.readout is not None else sites

    def spark(self, axis: AxisName, key: int, height: int) -> Html:
        """The curve of subject ``key`` from the large figure once more, small, before all others in grey.

        Nothing is drawn twice in the file: both are ``<use>`` of the figure's own curves.
        """
        panel = next((p for p in PANELS if p.axis == axis), None)
        shown = self._views(panel) if panel else []
        if not panel or not shown:
            return Html("")
        curves = self._curves(panel, shown[0][0])
        others = el("g", el("use", href=f"#{curves}"), class_="ls-others") if len(self.subjects) > 1 else ""
        tone = self.subjects[key].tone or TONES[key % len(TONES)]
        own = el("g", el("use", href=f"#{curves}-{key}"), class_=tone)
        return el(
            "svg",
            others,
            own,
            class_="ls-spark",
            width="100%",
            height=height,
            viewBox=f"0 0 {WIDE} {2 * curves_height(len(self.subjects))}",
            preserveAspectRatio="none",
            aria_hidden="true",
        )

    def scale(self, measure: Measure, lines: Sequence[Line]) -> Scale:
        """The vertical axis that holds every line and band."""
        values = [v for line in lines for part in (line.values, line.low, line.high) for v in part or ()]
        return fit(measure.kind, values, include=(1.0,) if measure.relative_to_last else ())

    def figures(self) -> list[Html]:
        """One figure for each panel of which anything was measured."""
        return [f for f in map(self._figure, PANELS) if f]

    def _views(self, panel: Panel) -> list[tuple[Measure, list[Line]]]:
        """The panel's quantities of which anything was measured."""
        if not self.axes[panel.path].sites:
            return []
        found = [(measure, self.lines(panel, measure)) for measure in panel.measures]
        return [(m, lines) for m, lines in found if any(v is not None for line in lines for v in line.values)]

    def _curves(self, panel: Panel, measure: Measure) -> str:
        return f"{self._id}{panel.axis}{panel.measures.index(measure)}"

    def _figure(self, panel: Panel) -> Html:
        shown = self._views(panel)
        if not shown:
            return Html("")
        views = [
            View(m.name, m.meaning, *self._panel(panel, m, lines, told=k > 0)) for k, (m, lines) in enumerate(shown)
        ]
        caption = panel.reading
        if any(m.readout for m, _ in shown):
            caption += " The last column is the input of the classifier, after pooling."
        if any(line.mark is not None for _, lines in shown for line in lines):
            caption += " The ring marks the first layer at which the problem shows."
        key = key_bar(panel.key, two_sided=panel.measures[0].kind == "log")
        return figure(panel.title, views, caption, question=panel.question, key=key)

    def _panel(self, panel: Panel, measure: Measure, lines: Sequence[Line], told: bool) -> tuple[Html, Html]:
        axis = self.axes[panel.path]
        names = ", ".join(line.name for line in lines)
        return depth_panel(
            lines,
            # What each site is stands in the figure's first table; the script finds it there.
            [Column(c.name) if told else c for c in self.columns(panel, measure)],
            self.scale(measure, lines),
            label=f"{measure.name} along {len(axis.sites)} {axis.unit}s, from the input to the output, for {names}",
            strengths=[measure.strengths(line.values) for line in lines],
            stages=[*axis.stages(), (len(axis.sites), "")] if measure.readout is not None else axis.stages(),
            guides=self._guides(panel, measure),
            write=measure.write,
            name_curves=self._curves(panel, measure),
            mirrored=panel.path == "backward",
        )

    def _guides(self, panel: Panel, measure: Measure) -> tuple[Guide, ...]:
        first = [s.profiles[0] for s in self.subjects if s.profiles]
        if panel.axis == "I":
            return informative_guides(first)
        # The raw gradient depends on the input's scale: no limit holds for it.
        return gradient_guides(first) if panel.axis == "B" and measure is panel.measures[0] else ()

    def _mark(self, subject: Subject, panel: Panel, measure: Measure) -> int | None:
        """Index of the column at which the subject's problem on this axis starts."""
        where = subject.first_bad.get(panel.axis)
        axis = self.axes[panel.path]
        if where and measure.readout is not None and any(where == p.classifier for p in subject.profiles):
            return len(axis.sites)
        return axis.index(where)
