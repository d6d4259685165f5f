"""How cloning and the comparison of removals are shown."""

from __future__ import annotations

from layerscope.methods.medic.records import Entry, Table
from layerscope.methods.medic.report import Report
from layerscope.report.charts.frame import LONGEST
from layerscope.report.charts.lines import Line
from layerscope.report.charts.panels import View, figure
from layerscope.report.charts.plain import line_chart
from layerscope.report.charts.scatter import Point, scatter
from layerscope.report.charts.tables import table
from layerscope.report.document import paragraph, section
from layerscope.report.markup import Html, join
from layerscope.report.styled import Lines, squeeze_apart
from layerscope.report.views import register_view

_CAVEAT = (
    "A low attack success rate is evidence about the triggers tested, not a certificate. Read it against the floor, "
    "and test whether the backdoor is relearned."
)
#: Attack success this close to the floor's is the floor's: it differs by more between networks without poison.
_CLOSE = 0.05
#: Taps that one picture can hold.
_MOST_TAPS = 12
_HEADER = ("defence", "ACC", "ASR", "RA", "seconds")
_TAPS = ("tap", "kind", "D", "exp H(p)", "exp H(q)", "sum w", "dead", "1st loss", "last")


def _percent(entry: Entry, what: str) -> str:
    low, high = entry.spread(what)
    mean = f"{100 * entry.mean(what):.1f}"
    return mean if len(entry.scores) == 1 else f"{mean} [{100 * low:.1f}-{100 * high:.1f}]"


def _rows(result: Table, trigger: str) -> list[list[str]]:
    return [
        [e.defence, *(_percent(e, what) for what in ("acc", "asr", "ra")), f"{e.seconds:.1f}" if e.seconds else "-"]
        for e in result.entries
        if e.trigger == trigger
    ]


def _about(result: Table, trigger: str) -> str:
    scores = next(e for e in result.entries if e.trigger == trigger).scores[0]
    return (
        f"{result.model}, {result.clean_samples} clean samples, seeds {', '.join(map(str, result.seeds))}; in %, mean "
        f"[least-most]; ACC over {scores.n_clean}, ASR and RA over {scores.n_triggered} images. Floor: {result.floor}."
    )


def _reading(result: Table, trigger: str) -> str:
    """What the rows of a trigger say, in one or two sentences."""
    own = {e.defence: e for e in result.entries if e.trigger == trigger}
    before, floor = own.pop("before", None), own.pop("floor", None)
    if before is None or floor is None:
        return "Without the network as it came and a floor, attack success cannot be read."
    enough = floor.mean("asr") + _CLOSE
    if before.mean("asr") <= enough:
        return (
            f"This trigger does next to nothing to this network ({before.mean('asr'):.1%} against the floor's "
            f"{floor.mean('asr'):.1%}): these rows show what a defence costs, not whether it removes anything."
        )

    at_first = before.mean("acc")
    gone = sorted((e for e in own.values() if e.mean("asr") <= enough), key=lambda e: -e.mean("acc"))
    kept = [e.defence for e in own.values() if e.mean("asr") > enough]
    said = "Nothing here brings attack success down to the floor."
    if gone:
        said = (
            "Down to the floor, within 5 points (points of accuracy lost): "
            + ", ".join(f"{e.defence} ({100 * (at_first - e.mean('acc')):.1f})" for e in gone)
            + "."
        )
    return said + (f" Not: {', '.join(kept)}." if kept and gone else "")


def table_text(result: Table) -> Lines:
    """One table a trigger."""
    lines = Lines()
    for trigger in result.triggers:
        lines.add(f"{trigger}")
        lines.paragraph(_about(result, trigger))
        lines.table(_HEADER, _rows(result, trigger))
        lines.paragraph(_reading(result, trigger))
        lines.paragraph("not beaten in both ACC and ASR: " + ", ".join(e.defence for e in result.front(trigger)))
        lines.add("")
    for note in (*result.notes, _CAVEAT):
        lines.paragraph(note)
    return lines


def table_fragment(result: Table) -> Html:
    """The same with accuracy and attack success drawn against each other."""
    parts = []
    for trigger in result.triggers:
        own = [e for e in result.entries if e.trigger == trigger]
        points = [Point(e.defence, 100 * e.mean("acc"), 100 * e.mean("asr")) for e in own]
        path = [own.index(e) for e in result.front(trigger)]
        picture, numbers = scatter(points, x_title="accuracy, %", y_title="attack success, %", path=path)
        view = View("accuracy and attack success", "one point a defence; the line joins those that none beats", picture,
                    numbers)  # fmt: skip
        drawn = figure(f"{trigger}: what removal costs and leaves", [view], "Good: low and to the right.")
        words = (paragraph(_about(result, trigger)), paragraph(_reading(result, trigger)))
        parts.append(section(trigger, *words, table(_rows(result, trigger), _HEADER), drawn))
    parts.append(section("How to read it", *(paragraph(n) for n in (*result.notes, _CAVEAT))))
    return join(parts)


def _taps(report: Report) -> list[list[str]]:
    def count(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return [
        [t.name, t.kind, str(t.neurons), count(t.effective_activation), count(t.effective_impact),
         f"{t.total_weight:.3f}", str(t.dead_channels), f"{t.losses[0]:.3g}", f"{t.losses[-1]:.3g}"]
        for t in report.taps
    ]  # fmt: skip


def _clone_lines(report: Report) -> list[str]:
    return [
        f"{report.samples} clean samples, {report.steps} steps, seed {report.seed}, {report.seconds:.1f} s",
        f"effective clone weight {report.effective_clone_weight:.3g} (clone weight x mean total weight)",
        f"accuracy on the clean samples: teacher {report.teacher_accuracy:.1%}, student in training "
        f"{report.accuracies[-1]:.1%}",
        ", ".join(f"{k} {v}" for k, v in report.settings),
    ]


def clone_text(report: Report) -> Lines:
    """Numbers, taps, warnings."""
    lines = Lines()
    for line in _clone_lines(report):
        lines.paragraph(line)
    for warning in report.warnings:
        lines.paragraph(warning, first="warning: ", rest="  ", style="bold yellow")
    lines.add("")
    # 80 columns are few: a column of noughts says nothing
    shown = [i for i, name in enumerate(_TAPS) if name != "dead" or any(t.dead_channels for t in report.taps)]
    lines.table([_TAPS[i] for i in shown], [[row[i] for i in shown] for row in _taps(report)], left=2)
    lines.paragraph(_CAVEAT)
    return lines


def _course(report: Report) -> Html:
    """How the clone learned: the labels, and the teacher's activations at every tap."""
    epochs = [float(i + 1) for i in range(len(report.cross_entropies))]
    if len(epochs) < 2:
        return Html("")
    labels = line_chart(
        [Line("cross entropy", report.cross_entropies), Line("error", [1 - a for a in report.accuracies])],
        x=epochs, x_title="epoch", y_title="mean over the batches of an epoch, in training mode", y_kind="log",
    )  # fmt: skip
    views = [View("labels", "what the student gets wrong on the clean samples", labels)]
    if report.taps:
        drawn = sorted(report.taps, key=lambda tap: -tap.losses[-1])[:_MOST_TAPS]
        names = squeeze_apart([tap.name for tap in drawn], LONGEST)
        distances = line_chart(
            [Line(names[tap.name], tap.losses) for tap in report.taps if tap in drawn],
            x=epochs, x_title="epoch", y_title="weighted squared distance, in the teacher's sigmas", y_kind="log",
        )  # fmt: skip
        some = "" if len(drawn) == len(report.taps) else f" (the {len(drawn)} of {len(report.taps)} that end farthest)"
        meaning = f"how far the student's activations are from the teacher's, by tap{some}"
        views.insert(0, View("teacher", meaning, distances))
    return figure(
        "How the clone learned", views,
        "A tap that does not fall is not copied; the clone then rests on the labels and on the other taps.",
    )  # fmt: skip


def clone_fragment(report: Report) -> Html:
    """The same as a page."""
    warned = [section("Warnings", *(paragraph(w) for w in report.warnings))] if report.warnings else []
    return join([
        section("Cloning", *(paragraph(line) for line in _clone_lines(report))), *warned, _course(report),
        section("Taps", table(_taps(report), _TAPS, numeric_from=2), paragraph(_CAVEAT)),
    ])  # fmt: skip


register_view(Table, text=table_text, fragment=table_fragment, title=lambda t: f"Backdoor removal on {t.model}")
register_view(Report, text=clone_text, fragment=clone_fragment, title=lambda r: f"A clone from {r.samples} samples")
