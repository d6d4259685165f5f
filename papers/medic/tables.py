"""The tables of the MEDIC card, from ``results/*.jsonl``: python papers/medic/tables.py"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bed import ATTACKS, SEEN, UNSEEN
from reproduce import RESULTS, rows_in

Row = dict[str, Any]
#: An attack took if it works this often before removal.
TOOK = 0.8


class Rows:
    """Rows of one network, one number of clean samples and one way of training the poisoned networks."""

    def __init__(self, rows: Iterable[Row], net: str, clean: int, victim: str) -> None:
        self.of: dict[tuple[str, int, str], Row] = {}
        for row in rows:
            # before and floor do not depend on the clean samples
            samples = clean if row["defence"] in ("before", "floor") else row["clean"]
            if (row["net"], row["victim"], samples) == (net, victim, clean):
                self.of.setdefault((row["attack"], row["seed"], row["defence"]), row)

    def cells(self, defence: str, attacks: Sequence[str]) -> list[tuple[Row, Row, Row | None]]:
        """(row, the network before, the floor) of every attack that took, with every seed."""
        found = []
        for (attack, seed, name), row in self.of.items():
            before = self.of.get((attack, seed, "before"))
            if name == defence and attack in attacks and row["acc"] is not None and before and before["asr"] >= TOOK:
                found.append((row, before, self.of.get((attack, seed, "floor"))))
        return found

    @property
    def defences(self) -> list[str]:
        """Names in the order of the rows, cloning first."""
        names = dict.fromkeys(d for _, _, d in self.of if d not in ("before", "floor"))
        return sorted(names, key=lambda d: (not d.startswith("medic"), d))


def percent(values: Sequence[float], spread: bool = True) -> str:
    """Mean [least, most] in %."""
    if not values:
        return "-"
    text = f"{100 * mean(values):.1f}"
    return text + (f" [{100 * min(values):.1f}, {100 * max(values):.1f}]" if spread and len(values) > 1 else "")


def interval(values: Sequence[float]) -> str:
    """Mean +- two standard errors, in points."""
    if len(values) < 2:
        return percent(values)
    return f"{100 * mean(values):+.1f} +- {200 * stdev(values) / len(values) ** 0.5:.1f}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def summary(rows: Rows, attacks: Sequence[str]) -> str:
    """Every defence over all attacks that took and all seeds."""
    lines = []
    for defence in rows.defences:
        cells = rows.cells(defence, attacks)
        if not cells:
            continue
        loss = [before["acc"] - row["acc"] for row, before, _ in cells]
        asr = [row["asr"] for row, _, _ in cells]
        above = [row["asr"] - floor["asr"] for row, _, floor in cells if floor]
        again = [mean(row["relearn"]) - mean(floor["relearn"]) for row, _, floor in cells if floor]
        lines.append([
            defence, str(len(cells)), interval(loss), percent(asr), interval(above), interval(again),
            percent([row["ra"] for row, _, _ in cells], spread=False), f"{mean(r['seconds'] for r, _, _ in cells):.0f}",
        ])  # fmt: skip
    header = (
        "defence", "cells", "ACC lost", "ASR [least, most]", "ASR above floor", "relearned above floor", "RA", "seconds"
    )  # fmt: skip
    return markdown(header, lines)


def paired(rows: Rows, attacks: Sequence[str]) -> str:
    """Every other defence minus medic on the same poisoned networks, in points: what a mean over cells hides."""
    own = {(row["attack"], row["seed"]): row for row, _, _ in rows.cells("medic", attacks)}
    lines = []
    for defence in rows.defences:
        pairs = [
            (row, own[key])
            for row, _, _ in rows.cells(defence, attacks)
            if (key := (row["attack"], row["seed"])) in own
        ]
        if defence == "medic" or not pairs:
            continue
        lines.append([
            defence, str(len(pairs)), *(interval([a[k] - b[k] for a, b in pairs]) for k in ("acc", "asr")),
            interval([mean(a["relearn"]) - mean(b["relearn"]) for a, b in pairs]),
        ])  # fmt: skip
    return markdown(("minus medic", "cells", "ACC", "ASR", "relearned"), lines)


def grid(rows: Rows, attacks: Sequence[str], what: Callable[[Row], str]) -> str:
    """One number for every defence and attack, mean over seeds in ``what``."""
    lines = []
    for defence in ("before", "floor", *rows.defences):
        found = [[r for (a, _, d), r in rows.of.items() if a == attack and d == defence] for attack in attacks]
        if any(found):
            lines.append([defence, *(what(mean_row(some)) if some else "-" for some in found)])
    return markdown(("ACC / ASR", *attacks), lines)


def mean_row(rows: Sequence[Row]) -> Row:
    """Mean over seeds."""
    good = [r for r in rows if r["acc"] is not None]
    return {k: mean(r[k] for r in good) for k in ("acc", "asr")} if good else {"acc": None}


def both(row: Row) -> str:
    """ACC / ASR."""
    return "-" if row["acc"] is None else f"{100 * row['acc']:.1f} / {100 * row['asr']:.1f}"


def benign(rows: Rows) -> str:
    """What a defence costs a network without poison."""
    lines = []
    for defence in rows.defences:
        pairs = [
            (rows.of["none", seed, "before"], row)
            for (attack, seed, name), row in rows.of.items()
            if attack == "none" and name == defence and row["acc"] is not None and ("none", seed, "before") in rows.of
        ]
        if pairs:
            lines.append([defence, str(len(pairs)), interval([b["acc"] - r["acc"] for b, r in pairs])])
    return markdown(("defence", "seeds", "ACC lost"), lines)


def curves(rows: Rows, defences: Sequence[str], attacks: Sequence[str]) -> str:
    """Attack success after each epoch of relearning, mean over seeds."""
    lines = []
    for defence in defences:
        cells = []
        for attack in attacks:
            found = [
                r["relearn"] for (a, _, d), r in rows.of.items() if a == attack and d == defence and "relearn" in r
            ]
            cells.append(" ".join(f"{100 * mean(at):.0f}" for at in zip(*found, strict=True)) if found else "-")
        lines.append([defence, *cells])
    return markdown(("ASR after epochs 1 to 5", *attacks), lines)


def front(rows: Rows, attacks: Sequence[str]) -> str:
    """Which baselines are at least as good as cloning on accuracy, attack success and relearning at once."""

    def three(defence: str) -> tuple[float, float, float] | None:
        cells = [c for c in rows.cells(defence, attacks) if c[2]]
        if not cells:
            return None
        return (
            mean(b["acc"] - r["acc"] for r, b, _ in cells), mean(r["asr"] for r, _, _ in cells),
            mean(mean(r["relearn"]) for r, _, _ in cells),
        )  # fmt: skip

    own = three("medic")
    if own is None:
        return ""
    better = [
        d for d in rows.defences
        if not d.startswith("medic") and (o := three(d)) and all(x <= y for x, y in zip(o, own, strict=True))
    ]  # fmt: skip
    return "At least as good as medic on all three at once: " + (", ".join(better) or "none") + "."


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--victim", default="60000x8/256")
    parser.add_argument("--clean", type=int, default=3000)
    options = parser.parse_args()
    rows = list(rows_in(options.results).values())
    table = Rows(rows, "resnet", options.clean, options.victim)
    less = Rows(rows, "resnet", round(0.4 * options.clean), options.victim)
    parts = [
        (
            "Main table, all attacks that took",
            "\n\n".join((summary(table, ATTACKS), paired(table, ATTACKS), front(table, ATTACKS))),
        ),
        ("Attacks seen while defaults were chosen", summary(table, SEEN)),
        ("Attacks kept apart", summary(table, UNSEEN) + "\n\n" + front(table, UNSEEN)),
        ("By attack", grid(table, ATTACKS, both)),
        (
            "Relearning",
            curves(table, ("floor", "medic", "medic taps=conv+norm", "distill", "scratch", "fst", "ft-sam"), ATTACKS),
        ),
        ("Network without poison", benign(table)),
        ("Low poisoning, 0.5 %", summary(table, ("low",))),
        ("2 % clean data", summary(less, ATTACKS)),
    ]
    for net in ("vgg", "groupnorm"):
        other = Rows(rows, net, options.clean, options.victim)
        parts.append((net, grid(other, ATTACKS, both) + "\n\n" + benign(other)))
    ablated = [d for d in table.defences if d.startswith("medic")]
    some = [a for a in ATTACKS if any((a, s, ablated[-1]) in table.of for s in range(9))] if ablated else []
    parts.append(("Ablations", grid(table, some, both) + "\n\n" + curves(table, ("floor", *ablated), some)))
    for title, text in parts:
        print(f"## {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
