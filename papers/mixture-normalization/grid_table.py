"""The tables of the grids: accuracy, and updates to batch norm's best, with intervals over the seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from intervals import interval

Row = dict[str, Any]

#: Marks that one accuracy is a mean of.
SMOOTH = 3
#: Batch norm with the scale of a mixture of three.
CONTROL = "BN, gain sqrt(3)"
#: How far below batch norm's best the second goal is.
NEAR = 0.01


def tables(rows: list[Row]) -> str:
    """One table per scale: every network, learning rate and arm, paired with batch norm by seed."""
    groups: dict[tuple[str, str, float], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["scale"], row["net"], row["lr"]][row["arm"]][row["seed"]] = row
    lines: list[str] = []
    for scale in dict.fromkeys(key[0] for key in groups):
        lines += [f"\n### {scale}\n", "| network, rate | norm | seeds | best accuracy | difference to BN |"]
        lines[-1] += (
            " mean over training: difference to BN | to BN, gain sqrt(3) | updates to BN's best | to 1 point below it |"
        )
        lines += ["|---" * 9 + "|"]
        for (name, net, lr), arms in sorted(groups.items(), key=lambda item: item[0]):
            if name == scale and "BN" in arms:
                lines += [_line(f"{net}, {lr:g}", arm, arms) for arm in arms]
    return "\n".join(lines)


def _line(title: str, arm: str, arms: dict[str, dict[int, Row]]) -> str:
    bn, control = arms["BN"], arms.get(CONTROL, {})
    found = {seed: row for seed, row in arms[arm].items() if seed in bn}
    cells = [title, arm, str(len(found)), f"{100 * statistics.fmean(best(r) for r in found.values()):.1f}"]
    if arm == "BN":
        # what the measure says where there is no difference but the seed
        pairs = list(itertools.permutations(bn.values(), 2))
        cells += ["", "", "", _speed(pairs, 0.0, with_interval=False), _speed(pairs, NEAR, with_interval=False)]
    else:
        pairs = [(found[s], bn[s]) for s in sorted(found) if s in bn]
        others = [(found[s], control[s]) for s in sorted(found) if s in control and arm != CONTROL]
        cells += [_points(pairs, best), _points(pairs, mean_accuracy), _points(others, mean_accuracy)]
        cells += [_speed(pairs, 0.0), _speed(pairs, NEAR)]
    return "| " + " | ".join(cells) + " |"


def curve(row: Row) -> list[tuple[float, float]]:
    """(updates, accuracy): after so many updates, the mean of the last three marks."""
    points = list(zip(row["marks"], row["accuracy"], strict=True))
    windows = [points[i : i + SMOOTH] for i in range(len(points) - SMOOTH + 1)]
    return [(w[-1][0], statistics.fmean(a for _, a in w)) for w in windows]


def best(row: Row) -> float:
    """The highest point of the smoothed curve."""
    return max(a for _, a in curve(row))


def mean_accuracy(row: Row) -> float:
    """Mean test accuracy over the whole training: larger if it is reached earlier."""
    return statistics.fmean(row["accuracy"])


def updates_to(row: Row, goal: float) -> float | None:
    """Updates until the smoothed curve first reaches ``goal``, between two of its points linearly; None if never."""
    points = curve(row)
    if points[0][1] >= goal:
        return points[0][0]
    for (m0, a0), (m1, a1) in itertools.pairwise(points):
        if a1 >= goal:
            return m0 + (m1 - m0) * (goal - a0) / (a1 - a0)
    return None


def _points(pairs: list[tuple[Row, Row]], of: Callable[[Row], float]) -> str:
    """Mean difference in points, and its 95 % interval."""
    gains = [100 * (of(row) - of(bn)) for row, bn in pairs]
    return _mean(gains, "{:+.1f}".format)


def _speed(pairs: list[tuple[Row, Row]], below: float, with_interval: bool = True) -> str:
    """Updates over those of batch norm, geometric mean. Who never gets there counts as all updates."""
    ratios, missed = [], 0
    for row, bn in pairs:
        goal = best(bn) - below
        found = updates_to(row, goal)
        missed += found is None
        ratios.append(math.log((row["marks"][-1] if found is None else found) / (updates_to(bn, goal) or math.nan)))
    text = (
        _mean(ratios, lambda v: f"{math.exp(v):.2f}") if with_interval else f"{math.exp(statistics.fmean(ratios)):.2f}"
    )
    return text + (f", {missed} of {len(pairs)} never" if missed else "")


def _mean(values: list[float], show: Callable[[float], str]) -> str:
    if len(values) < 2:
        return " / ".join(show(v) for v in values)
    low, high = interval(values)
    return f"{show(statistics.fmean(values))} ({show(low)} to {show(high)})"
