"""How the budget of encrypted inference shows itself."""

from __future__ import annotations

from collections.abc import Sequence

from layerscope.methods.encrypted.costs.records import Advice, Advised, CostReport, LayerCost
from layerscope.report.charts.bars import bars
from layerscope.report.charts.tables import table
from layerscope.report.document import paragraph, section
from layerscope.report.markup import Html, join
from layerscope.report.views import register_view

_SPANS = ((365.25 * 86400, "y"), (86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def span(seconds: float | None) -> str:
    """Seconds as a person says them: ``3.9 y``, ``41 min``, ``0.2 s``."""
    if seconds is None:
        return "-"
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds else "0"


def count(number: float | None) -> str:
    """A count with a letter for its thousands."""
    if number is None:
        return "-"
    for size, unit in _COUNTS:
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def title(report: CostReport) -> str:
    """Heading of the page."""
    return f"Encrypted inference of {report.source}"


def headline(report: CostReport) -> list[str]:
    """What a reader must know before any table."""
    first = report.accumulators[0] if "csa" not in report.accumulators else "csa"
    gates = report.gates(first)
    lines = [
        f"One sample of {' x '.join(map(str, report.in_shape))}, {report.bits}-bit power-of-two weights, "
        f"{report.act_bits}-bit activations, on one core:",
        f"  gate by gate  {count(gates)} gates ({first}): {span(report.gate_seconds)}",
        f"  by lookups    {count(report.bootstraps)} bootstraps: {span(report.lookup_seconds)}",
    ]
    if report.leveled is not None and report.leveled.gate is not None:
        lines.append(
            f"  leveled       not possible: in {report.leveled.layer} gate {report.leveled.gate} (AND-depth "
            f"{report.leveled.and_depth}) is the first without a fresh selector"
        )
    if report.failure_per_bootstrap:
        lines.append(f"  failure       at most {report.failure_per_bootstrap:.1e} a bootstrap keeps it below 2^-17")
    if report.input_bytes:
        lines.append(
            f"  request       {report.input_bytes / 1e6:.1f} MB bit by bit; {count(report.peak_values)} values live"
        )
    if report.key_bytes:
        lines.append(f"  keys          {report.key_bytes / 1e6:.0f} MB for lookups, from the timing's source")
    return lines


def text(report: CostReport) -> str:
    """At most 80 columns of ASCII."""
    lines = [title(report), "", *headline(report), ""]
    lines.append(f"{'layer':<24}{'op':<9}{'units':>7}{'adds':>7}{'gates':>7}{'bits':>5}{'boots':>7}{'lookups':>12}")
    for layer in report.layers:
        name = layer.name if len(layer.name) < 24 else ".." + layer.name[-21:]
        if layer.reason:
            lines.append(f"{name:<24}{layer.kind[:8]:<9}{count(layer.units):>7}  not possible: {layer.kind}"[:80])
            continue
        gates, seconds = count(_gates(report, layer)), span(layer.lookup_seconds)
        lines.append(
            f"{name:<24}{layer.kind[:8]:<9}{count(layer.units):>7}{count(layer.adds):>7}"
            f"{gates:>7}{layer.width:>5}{count(layer.bootstraps):>7}{seconds:>12}"
        )
    lines.append("")
    lines += [f"  {name:<9}{count(report.gates(name)):>8} gates" for name in report.accumulators]
    lines += ["", f"gate time    {report.gate_timing}", f"lookup time  {report.lookup_timing}"]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"note: {layer.name}: {layer.reason}" for layer in report.unpriced[:3]]
    if report.advice:
        lines += ["", f"cheaper widths, some of {len(report.advice)} (share of the bootstraps of these settings):"]
        lines += _choices(_spaced(report.advice))
    return "\n".join(wrapped for line in lines for wrapped in _wrap(line))


def fragment(report: CostReport) -> Html:
    """The same as a page: headline, bars of where the bootstraps go, one table of everything."""
    header = ["layer", "op", "units", "weights", "adds", *[f"gates {a}" for a in report.accumulators], "AND-depth"]
    header += ["width", "shift", "bootstraps", "lookup bits", "gate time", "lookup time", "eq. 1"]
    rows: list[list[object]] = []
    for layer in report.layers:
        if layer.reason:
            rows.append([layer.name, layer.kind, count(layer.units), "not possible", *[""] * (len(header) - 4)])
            continue
        rows.append([
            layer.name, layer.kind, count(layer.units), count(layer.weights), count(layer.adds),
            *[count(layer.gates_of(a)) for a in report.accumulators], layer.and_depth, layer.width,
            "-" if layer.shift is None else "-".join(str(s) for s in dict.fromkeys(layer.shift)),
            count(layer.bootstraps), layer.lookup_bits or "-", span(layer.gate_seconds), span(layer.lookup_seconds),
            count(layer.paper_eq1),
        ])  # fmt: skip
    dear = sorted(report.layers, key=lambda layer: -layer.bootstraps)[:12]
    parts: list[object] = [
        section("In short", *[paragraph(line.strip()) for line in headline(report)]),
        section(
            "Where the bootstraps go",
            bars([(layer.name, float(layer.bootstraps)) for layer in dear if layer.bootstraps], write=count),
            paragraph("Each activation removes its low bits one bootstrap at a time and then looks the rest up."),
        ),
        section("Layer by layer", table(rows, header, numeric_from=2)),
    ]
    if report.unpriced:
        why: dict[tuple[str, str], list[str]] = {}
        for layer in report.unpriced:
            why.setdefault((layer.kind, layer.reason), []).append(layer.name)
        parts.append(
            section(
                "What cannot be evaluated",
                *[paragraph(f"{kind} ({', '.join(names)}): {reason}.") for (kind, reason), names in why.items()],
            )
        )
    if report.advice:
        parts.append(section("Cheaper widths", _choice_table(report.advice)))
    notes = [report.gate_timing, report.lookup_timing, *report.notes]
    notes.append("eq. 1 is the paper's depth formula, for comparison only: it is not the depth of the circuit.")
    parts.append(section("Notes", *[paragraph(note) for note in notes]))
    return join(parts)


def advised_title(found: Advised) -> str:
    """Heading of the page."""
    return f"Cheaper encrypted inference of {found.source}"


def advised_headline(found: Advised) -> list[str]:
    """The answer first."""
    bits, act_bits, lookup_bits = found.base
    lines = [
        f"To beat: bits={bits}, act_bits={act_bits}, lookup_bits={lookup_bits}, all channels: "
        f"{count(found.base_bootstraps)} bootstraps{_accuracy(found.base_accuracy, found.base_lost)}."
    ]
    best = found.best
    if best is None:
        lines.append(f"No recommendation: {found.reason}.")
    else:
        at_most = "" if best.lost_at_most is None else f", at most {100 * best.lost_at_most:.1f} with 95 % confidence"
        lines += [
            f"Take: {best.change}: {count(best.bootstraps)} bootstraps (x{best.factor:.2f}), "
            f"{count(best.gates)} gates, {span(best.seconds)} by lookups"
            f"{_accuracy(best.accuracy, best.lost)}{at_most}.",
            f"It is {found.reason}; the budget is {100 * found.most_loss:g} points.",
        ]
        lines += [f"Channels of {name}: {kept} of {of}." for name, kept, of in best.widths]
    if found.judged > 1:
        lines.append(f"{found.judged} candidates were judged on the last samples, which takes from their independence.")
    if found.unmeasured:
        lines.append(f"{found.unmeasured} candidates were neither measured nor ruled out: raise tries to go on.")
    return lines


def advised_text(found: Advised) -> str:
    """At most 80 columns of ASCII."""
    measured = [row for row in found.rows if row.accuracy is not None]
    what = "measured" if measured else f"some of {len(found.rows)}"
    lines = [
        advised_title(found),
        "",
        *advised_headline(found),
        "",
        f"{what}, by price (share of the bootstraps to beat):",
    ]
    lines += _choices(measured or _spaced(found.rows))
    if not found.rows:
        lines.append("  none is cheaper")
    return "\n".join(wrapped for line in lines for wrapped in _wrap(line))


def advised_fragment(found: Advised) -> Html:
    """The same as a page."""
    return join([
        section("In short", *[paragraph(line) for line in advised_headline(found)]),
        section("All candidates, by price", _choice_table(found.rows)),
    ])  # fmt: skip


def _accuracy(accuracy: float | None, lost: float | None) -> str:
    if accuracy is None or lost is None:
        return ""
    return f", accuracy {accuracy:.3f} ({100 * lost:.1f} points lost)"


def _spaced(rows: Sequence[Advice], most: int = 10) -> list[Advice]:
    """Some of a price list from its cheapest to its dearest."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i * (len(rows) - 1) // (most - 1)] for i in range(most)]


def _choices(rows: Sequence[Advice]) -> list[str]:
    lines = [
        f"  {'bits':>4}{'act':>5}{'lookup':>8}{'channels':>10}{'boots':>8}{'share':>7}{'gates':>8}{'time':>9}"
        f"{'lost':>7}"
    ]
    for row in rows:
        lost = "" if row.lost is None else f"{100 * row.lost:.1f}"
        lines.append(
            f"  {row.bits:>4}{row.act_bits:>5}{row.lookup_bits:>8}{row.channels:>10g}{count(row.bootstraps):>8}"
            f"{row.factor:>7.2f}{count(row.gates):>8}{span(row.seconds):>9}{lost:>7}"
        )
    return lines


def _choice_table(rows: Sequence[Advice]) -> Html:
    header = ["bits", "act bits", "lookup bits", "channels kept", "bootstraps", "share", "gates", "lookup time"]
    header += ["widest lookup", "accuracy", "points lost", "at most", "verdict", "narrower layers"]
    shown = [
        [
            row.bits, row.act_bits, row.lookup_bits, f"{row.channels:g}", count(row.bootstraps), f"{row.factor:.2f}",
            count(row.gates), span(row.seconds), row.widest_lookup or "-",
            "-" if row.accuracy is None else f"{row.accuracy:.3f}", _points(row.lost), _points(row.lost_at_most),
            row.verdict, ", ".join(f"{name} {kept}/{of}" for name, kept, of in row.widths) or "-",
        ]
        for row in rows
    ]  # fmt: skip
    return table(shown, header)


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _gates(report: CostReport, layer: LayerCost) -> int:
    return layer.gates_of("csa" if "csa" in report.accumulators else report.accumulators[0])


def _wrap(line: str, width: int = 80) -> list[str]:
    if len(line) <= width:
        return [line]
    at = line.rfind(" ", 0, width)
    return [line[:at], *_wrap("    " + line[at + 1 :], width)] if at > 8 else [line]


register_view(CostReport, text=text, fragment=fragment, title=title)
register_view(Advised, text=advised_text, fragment=advised_fragment, title=advised_title)
