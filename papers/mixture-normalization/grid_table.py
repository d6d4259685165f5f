"""The tables of the grids: accuracy with intervals, and updates to batch norm's best."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from intervals import interval

Row = dict[str, Any]


def tables(rows: list[Row]) -> str:
    """One table per scale: every network, learning rate and arm, paired with batch norm by seed."""
    groups: dict[tuple[str, str, float], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["scale"], row["net"], row["lr"]][row["arm"]][row["seed"]] = row
    lines: list[str] = []
    for scale in dict.fromkeys(key[0] for key in groups):
        lines += [f"\n### {scale}\n", "| network, rate | norm | seeds | best accuracy | difference to BN (95 %) |"]
        lines[-1] += " updates to BN's best accuracy | to BN's final loss |"
        lines += ["|---" * 7 + "|"]
        for (name, net, lr), arms in groups.items():
            if name == scale and "BN" in arms:
                lines += [_line(f"{net}, {lr:g}", arm, found, arms["BN"]) for arm, found in arms.items()]
    return "\n".join(lines)


def _line(title: str, arm: str, found: dict[int, Row], bn: dict[int, Row]) -> str:
    seeds = sorted(found)
    paired = [s for s in seeds if s in bn]
    best = statistics.fmean(100 * max(found[s]["accuracy"]) for s in seeds)
    gains = [100 * (max(found[s]["accuracy"]) - max(bn[s]["accuracy"])) for s in paired]
    difference = "" if arm == "BN" else _mean(gains)
    cells = [
        title, arm, str(len(seeds)), f"{best:.1f}", difference,
        " / ".join(_share(updates_to_accuracy(found[s], bn[s])) for s in paired),
        " / ".join(_share(updates_to_loss(found[s], bn[s])) for s in paired),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return " / ".join(f"{v:+.1f}" for v in values)
    low, high = interval(values)
    return f"{statistics.fmean(values):+.1f} ({low:+.1f} to {high:+.1f})"


def _share(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def updates_to_accuracy(row: Row, bn: Row) -> float | None:
    """Updates until the best accuracy of batch norm is reached, as a share of all; None if never."""
    goal = max(bn["accuracy"])
    return next((m / row["marks"][-1] for m, a in zip(row["marks"], row["accuracy"], strict=True) if a >= goal), None)


def updates_to_loss(row: Row, bn: Row) -> float | None:
    """The same for batch norm's training loss over its last interval."""
    goal = bn["loss"][-1]
    return next((m / row["marks"][-1] for m, v in zip(row["marks"], row["loss"], strict=True) if v <= goal), None)
