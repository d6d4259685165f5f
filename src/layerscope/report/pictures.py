"""The layers of several networks on common axes, drawn small (beside the verdicts) and large (the figures)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layerscope.probe.records import Profile
from layerscope.report import numbers
from layerscope.report.charts.depth import Column, depth_panel
from layerscope.report.charts.frame import Guide
from layerscope.report.charts.heat import key_bar
from layerscope.report.charts.lines import Line
from layerscope.report.charts.panels import View, figure
from layerscope.report.layers import LayerAxis, Path, layer_axis, series
from layerscope.report.looks import LABEL_LOOKS, Look
from layerscope.report.markup import Html
from layerscope.report.measures import PANELS, Measure, Panel
from layerscope.report.scales import Scale, fit
from layerscope.verdict.thresholds import DEFAULT
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
            found.append(Line(subject.name, values, along.low, along.high, subject.tone, subject.look, mark))
        return found

    def columns(self, panel: Panel, measure: Measure) -> list[Column]:
        """The places on the panel's layer axis."""
        sites = [
            Column(s.name, " ".join(p for p in (s.kind, numbers.shape(s.shape)) if p)) for s in self.axes[panel.path].sites
        ]
        return [*sites, Column(READOUT)] if measure.readout is not None else sites

    def scale(self, measure: Measure, lines: Sequence[Line]) -> Scale:
        """The vertical axis that holds every line and band."""
        values = [v for line in lines for part in (line.values, line.low, line.high) for v in part or ()]
        return fit(measure.kind, values, include=(1.0,) if measure.relative_to_last else ())

    def figures(self) -> list[Html]:
        """One figure for each panel of which anything was measured."""
        return [f for f in map(self._figure, PANELS) if f]

    def _figure(self, panel: Panel) -> Html:
        axis = self.axes[panel.path]
        views = []
        for measure in panel.measures if axis.sites else ():
            lines = self.lines(panel, measure)
            if all(v is None for line in lines for v in line.values):
                continue
            views.append(View(measure.name, measure.meaning, self._panel(panel, measure, lines)))
        if not views:
            return Html("")
        rings = any(line.mark is not None for m in panel.measures for line in self.lines(panel, m))
        caption = panel.reading + (" The ring marks the first layer at which the problem shows." if rings else "")
        key = key_bar(panel.key, two_sided=panel.measures[0].kind == "log")
        return figure(panel.title, views, caption, question=panel.question, key=key)

    def _panel(self, panel: Panel, measure: Measure, lines: Sequence[Line]) -> Html:
        axis = self.axes[panel.path]
        names = ", ".join(line.name for line in lines)
        return depth_panel(
            lines,
            self.columns(panel, measure),
            self.scale(measure, lines),
            label=f"{measure.name} along {len(axis.sites)} {axis.unit}s, from the input to the output, for {names}",
            strengths=[measure.strengths(line.values) for line in lines],
            stages=axis.stages(),
            guides=_gradient_guides(axis) if panel.axis == "B" else panel.guides,
            write=measure.write,
        )

    def _mark(self, subject: Subject, panel: Panel, measure: Measure) -> int | None:
        """Index of the column at which the subject's problem on this axis starts."""
        where = subject.first_bad.get(panel.axis)
        axis = self.axes[panel.path]
        if where and measure.readout is not None and any(where == p.classifier for p in subject.profiles):
            return len(axis.sites)
        return axis.index(where)


def _gradient_guides(axis: LayerAxis) -> tuple[Guide, ...]:
    """On a residual stream every block can be trained from the loss side, so the alarm stands higher there."""
    bad = DEFAULT.gradient_bad_residual if axis.unit == "block" else DEFAULT.gradient_bad
    return (Guide(bad, "unstable above"), Guide(DEFAULT.gradient_vanish_caution, "shrinking below"))
