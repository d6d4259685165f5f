"""Results as one flat table: a column for each argument and each number, a row for each trial."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from layerscope.errors import MissingExtraError, StudyError, did_you_mean
from layerscope.study.design import Study
from layerscope.study.store import Row

Form = Literal["csv", "json", "parquet"]

_FIRST = ("id", "state", "held_out", "held_out_by")
_LAST = ("error", "seconds")


def flatten(rows: Iterable[Row], study: Study | None = None) -> list[dict[str, Any]]:
    """One flat mapping for each trial: id, state, arguments, results, error, seconds.

    Nested results get dotted names (``axes.F``); lists stay JSON text. With ``study``: only its trials, in its order,
    whether its file holds each one out (``held_out``) and by which lines (``held_out_by``). A result named like an
    argument becomes ``result.name``.
    """
    by_id = {row.id: row for row in rows}
    if study is None:
        return [_flat(row, {}) for row in by_id.values()]
    table = []
    for trial in study.trials:
        if trial.id in by_id:
            by = study.held_out_by(trial)
            table.append(_flat(by_id[trial.id], {"held_out": bool(by), "held_out_by": " ".join(by)}))
    return table


def export(table: Sequence[Mapping[str, Any]], path: str | Path, form: Form | None = None) -> Path:
    """Write a flat table as CSV, JSON or Parquet.

    Args:
        table: from :func:`flatten`.
        path: where to.
        form: by the file's ending, if not given.

    Raises:
        StudyError: a form that is not known, or a file that cannot be written.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path)
    form = form or _form(path)
    try:
        if form == "json":
            path.write_text(json.dumps(list(table), indent=1) + "\n")
        elif form == "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns(table), restval="")
                writer.writeheader()
                writer.writerows(table)
        else:
            _parquet(table, path)
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def columns(table: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every column of a table: id and state first, error and time last."""
    names = dict.fromkeys(name for row in table for name in row)
    middle = [n for n in names if n not in (*_FIRST, *_LAST)]
    return [n for n in _FIRST if n in names] + middle + [n for n in _LAST if n in names]


def _flat(row: Row, extra: Mapping[str, Any]) -> dict[str, Any]:
    arguments, result = _leaves(row.params), _leaves(row.result)
    renamed = {(f"result.{k}" if k in arguments or k in (*_FIRST, *_LAST) else k): v for k, v in result.items()}
    return {
        "id": row.id,
        "state": row.state,
        **extra,
        **arguments,
        **renamed,
        "error": row.error,
        "seconds": round(row.seconds, 4),
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _form(path: Path) -> Form:
    known: tuple[Form, ...] = get_args(Form)
    for form in known:
        if path.suffix == f".{form}":
            return form
    raise StudyError(
        f"{path.name}: a table is written as .csv, .json or .parquet; {did_you_mean(path.suffix[1:], known)}"
    )


def _parquet(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "Parquet") from None
    names = columns(table)
    parquet.write_table(arrow.table({n: _column([row.get(n) for row in table]) for n in names}), path)


def _column(values: list[Any]) -> list[Any]:
    """One type for each column: where numbers and text (``nan``, ``inf``) meet, numbers."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {bool} or kinds == {str}:
        return values
    try:
        return [None if v is None else float(v) for v in values]
    except ValueError:
        return [None if v is None else str(v) for v in values]
