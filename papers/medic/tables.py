"""The tables of the MEDIC card, from ``results/*.jsonl``: python papers/medic/tables.py --write

Without ``--write`` they are only printed; with it each is put into the card, between its marks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bed import ATTACKS, NETS, UNSEEN
from defences import ablations, main_table
from reproduce import RESULTS, rows_in

Row = dict[str, Any]
CARD = Path(__file__).parent / "README.md"
MAIN, CHANGED = tuple(main_table()), tuple(ablations())
#: The methods whose relearning is shown by attack.
CURVES = ("floor", "medic", "distill", "uniform clone", "scratch", "fst", "fine-tune lr=0.1", "ft-sam", "clp")
#: An attack took if it works this often before removal.
TOOK = 0.8


class Rows:
    """Rows of one network and one number of clean samples, of some defences."""

    def __init__(self, rows: Iterable[Row], net: str, clean: int, victim: str, defences: Sequence[str]) -> None:
        #: in the order of the tables
        self.defences = defences
        self.of: dict[tuple[str, int, str], Row] = {}
        for row in rows:
            # before and floor do not depend on the clean samples
            given = row["defence"] in ("before", "floor")
            if (row["net"], row["victim"]) == (net, victim) and (
                given or (row["defence"] in defences and row["clean"] == clean)
            ):
                self.of.setdefault((row["attack"], row["seed"], row["defence"]), row)

    def where_one_ran(self) -> Rows:
        """Those of the (attack, seed) that a defence ran at only: the others have no more than their floor."""
        cells = {(attack, seed) for attack, seed, defence in self.of if defence in self.defences}
        made = Rows((), "", 0, "", self.defences)
        made.of = {key: row for key, row in self.of.items() if key[:2] in cells}
        return made

    def ran_on(self, attack: str) -> bool:
        """Whether a defence ran on it."""
        return any(a == attack and d in self.defences for a, _, d in self.of)

    @property
    def attacks(self) -> list[str]:
        """Those with a row of a defence, in order."""
        return [attack for attack in ATTACKS if self.ran_on(attack)]

    def cells(self, defence: str, attacks: Sequence[str]) -> list[tuple[Row, Row, Row | None]]:
        """(row, the network before, the floor) of every attack that took, with every seed."""
        found = []
        for (attack, seed, name), row in self.of.items():
            before = self.of.get((attack, seed, "before"))
            if name == defence and attack in attacks and row["acc"] is not None and before and before["asr"] >= TOOK:
                found.append((row, before, self.of.get((attack, seed, "floor"))))
        return found


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
    return f"{100 * mean(values):+.1f} +- {100 * two_errors(values):.1f}"


def two_errors(values: Sequence[float]) -> float:
    """Two standard errors of the mean."""
    return 2 * stdev(values) / len(values) ** 0.5


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


Pairs = list[tuple[Row, Row]]


def pairs_with_medic(rows: Rows, defence: str, attacks: Sequence[str]) -> Pairs:
    """(its row, medic's) of every poisoned network that both ran on."""
    own = {(row["attack"], row["seed"]): row for row, _, _ in rows.cells("medic", attacks)}
    found = rows.cells(defence, attacks)
    return [(row, own[key]) for row, _, _ in found if (key := (row["attack"], row["seed"])) in own]


def differences(pairs: Pairs) -> dict[str, list[float]]:
    """The first minus the second, by what is compared."""
    found = {key: [a[key] - b[key] for a, b in pairs] for key in ("acc", "held", "asr")}
    return found | {"relearned": [mean(a["relearn"]) - mean(b["relearn"]) for a, b in pairs]}


def paired(rows: Rows, attacks: Sequence[str]) -> str:
    """Every other defence minus medic on the same poisoned networks, in points: what a mean over cells hides."""
    lines = []
    for defence in rows.defences:
        pairs = pairs_with_medic(rows, defence, attacks)
        if defence != "medic" and pairs:
            lines.append([defence, str(len(pairs)), *(interval(values) for values in differences(pairs).values())])
    return markdown(("minus medic", "cells", "ACC", "ACC held back", "ASR", "relearned"), lines)


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
        if any(cell != "-" for cell in cells):
            lines.append([defence, *cells])
    return markdown(("ASR after epochs 1 to 5", *attacks), lines)


def front(rows: Rows, attacks: Sequence[str]) -> str:
    """Which baselines are, on the same networks, at least as good in accuracy, attack success and relearning."""
    better = []
    for defence in rows.defences:
        if defence.startswith("medic") or not (pairs := pairs_with_medic(rows, defence, attacks)):
            continue
        by = {key: mean(values) for key, values in differences(pairs).items()}
        if by["acc"] >= 0 and by["asr"] <= 0 and by["relearned"] <= 0:
            better.append(defence)
    return "At least as good as medic in the mean on all three at once: " + (", ".join(better) or "none") + "."


def parts(rows: Sequence[Row], former: Sequence[Row], clean: int, victim: str) -> dict[str, str]:
    """Name of a place in the card -> its text; ``former`` are the rows of the default before this one."""
    table = Rows(rows, "resnet", clean, victim, MAIN)
    made = {
        "main": f"{summary(table, ATTACKS)}\n\n{front(table, ATTACKS)}",
        "paired": paired(table, ATTACKS),
        "unseen": "\n\n".join((summary(table, UNSEEN), paired(table, UNSEEN), front(table, UNSEEN))),
        "by attack": grid(table, ATTACKS, both),
        "relearning": curves(table, CURVES, ATTACKS),
        "no poison": benign(table),
        **beside(rows, clean, victim),
    }
    made["changed"] = paired(Rows(rows, "resnet", clean, victim, ("medic", *CHANGED)), ATTACKS)
    made["former"] = summary(Rows(former, "resnet", clean, victim, ("medic", "distill", "scratch")), ATTACKS)
    tried = dict.fromkeys(row["defence"] for row in former if row["defence"].startswith("medic"))
    made["former changed"] = paired(Rows(former, "resnet", clean, victim, list(tried)), ATTACKS)
    return made


def beside(rows: Sequence[Row], clean: int, victim: str) -> dict[str, str]:
    """Fewer poisoned images, fewer clean ones and other networks, as far as cloning ran there."""
    low = Rows(rows, "resnet", clean, victim, MAIN)
    less = Rows(rows, "resnet", round(0.4 * clean), victim, MAIN)
    made = {}
    if low.cells("medic", ("low",)):
        made["low"] = summary(low, ("low",))
    if any(defence == "medic" for _, _, defence in less.of):
        less = less.where_one_ran()
        shown = [part(less, less.attacks) for part in (summary, paired, front)] + [grid(less, less.attacks, both)]
        made["budget"] = "\n\n".join(shown)
    for net in NETS:
        other = Rows(rows, net, clean, victim, MAIN)
        if net != "resnet" and any(defence == "medic" for _, _, defence in other.of):
            shown = [grid(other, other.attacks, both), curves(other, MAIN, other.attacks)]
            made[net] = "\n\n".join([*shown, benign(other)] if other.ran_on("none") else shown)
    return made


def written(card: str, made: dict[str, str]) -> str:
    """The card with every table between its marks.

    Raises:
        ValueError: the card lacks a mark.
    """
    for name, text in made.items():
        first, last = f"<!-- {name}: written by tables.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(first)}.*?{re.escape(last)}", re.DOTALL)
        if not pattern.search(card):
            raise ValueError(f"{CARD} has no place for {name!r}: add the lines  {first}  and  {last}")
        card = pattern.sub(lambda _, text=text, first=first, last=last: f"{first}\n\n{text}\n\n{last}", card)
    return card


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--victim", default="60000x8/256")
    parser.add_argument("--clean", type=int, default=3000)
    parser.add_argument("--write", action="store_true", help="put the tables into the card too")
    options = parser.parse_args()
    rows, former = (list(rows_in(folder).values()) for folder in (options.results, options.results / "former"))
    made = parts(rows, former, options.clean, options.victim)
    if options.write:
        CARD.write_text(written(CARD.read_text(), made))
    for title, text in made.items():
        print(f"## {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
