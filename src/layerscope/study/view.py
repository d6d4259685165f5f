"""Results in a terminal: a table of what varies, or one trial in full."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from layerscope.study.design import Study
from layerscope.study.store import Row
from layerscope.study.tables import flatten

#: Rows that a table shows before it says how many more there are.
ROWS = 40

#: Columns of results that a table shows.
RESULTS = 4


def one(row: Row) -> str:
    """Everything about one trial."""
    lines = [f"trial {row.id}: {row.state}, {row.seconds:.2f} s", f"function  {row.function}", "arguments"]
    lines += [f"  {name} = {json.dumps(value)}" for name, value in row.params.items()]
    if row.state == "failed":
        return "\n".join([*lines, "", row.trace.rstrip()])
    lines.append("result")
    return "\n".join([*lines, *(f"  {name} = {_short(value)}" for name, value in row.result.items())])


def table(study: Study, rows: Sequence[Row]) -> str:
    """The arguments that vary and the first few numbers, one line for each trial."""
    flat = flatten(rows, study)
    if not flat:
        return "no results to show"
    axes = [name for name, values in study.grid if len(values) > 1]
    arguments = {name for name, _ in (*study.grid, *study.fixed)}
    numbers = list(dict.fromkeys(k for row in flat for k, v in row.items() if k not in arguments and _is_number(k, v)))
    preferred = [n for n in numbers if n.startswith("outcome.")] or numbers
    names = ["id", *axes, *preferred[:RESULTS]]
    if any(row["state"] == "failed" for row in flat):
        names.append("error")
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in flat[:ROWS])]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    if len(flat) > ROWS:
        lines.append(f"... and {len(flat) - ROWS} more:  layerscope study export FILE OUT.csv")
    return "\n".join(lines)


def _is_number(name: str, value: Any) -> bool:
    return name not in ("id", "state", "seconds", "error", "held_out") and isinstance(value, bool | int | float)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."
