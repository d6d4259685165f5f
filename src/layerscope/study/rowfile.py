"""Rows of a store as one small text file: for committing results, and for bringing together what several machines ran.

JSON lines, sorted by trial id, compressed; the same rows give the same bytes. Numbers are kept to seven digits.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layerscope.errors import StudyError
from layerscope.study.store import Row, Store
from layerscope.study.trial import Outcome, Trial

SUFFIXES = (".jsonl", ".jsonl.gz")

_KEYS = ("function", "params", "state", "result", "error", "trace", "seconds")


def is_row_file(path: Path) -> bool:
    """Whether a path is named like a row file."""
    return path.name.endswith(SUFFIXES)


def write(rows: Iterable[Row], path: str | Path) -> int:
    """Write rows; returns how many.

    Raises:
        StudyError: the file cannot be written.
    """
    path = Path(path)
    lines = [
        json.dumps(
            {k: _rounded(getattr(row, k)) if k == "result" else getattr(row, k) for k in _KEYS}, separators=(",", ":")
        )
        for row in sorted(rows, key=lambda r: r.id)
    ]
    data = "".join(line + "\n" for line in lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror or error}") from None
    return len(lines)


def read(path: str | Path) -> Iterator[Row]:
    """Every row of a row file.

    Raises:
        StudyError: no such file, or a line that is no row; the message names the line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except FileNotFoundError:
        raise StudyError(f"no results at {path}") from None
    except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
            trial = Trial.of(found["function"], _tuples(found["params"]))
            yield Row(id=trial.id, ended=0.0, **{key: found[key] for key in _KEYS})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f"{path}, line {number}: not a result row ({type(error).__name__}: {error}). A file that was cut off "
                "ends like this: remove the line"
            ) from None


def rows_of(path: str | Path) -> Iterator[Row]:
    """The rows of a store or of a row file, by the file's name.

    Raises:
        StudyError: as :class:`Store` and :func:`read`.
    """
    path = Path(path)
    if is_row_file(path):
        yield from read(path)
        return
    with Store(path) as store:
        yield from store.rows()


def merge(into: Store, rows: Iterable[Row]) -> tuple[int, int]:
    """Add rows that a store does not have; a finished trial takes the place of a failed one, nothing else changes.

    Returns:
        Rows that were added, and rows that the store had already.
    """
    states = into.states()
    added = had = 0
    for row in rows:
        if states.get(row.id) == "done" or (row.id in states and row.state == "failed"):
            had += 1
            continue
        trial = Trial.of(row.function, _tuples(dict(row.params)))
        into.add(trial, Outcome(row.id, row.state, row.result, row.error, row.trace, row.seconds))
        states[row.id] = row.state
        added += 1
    return added, had


def _tuples(params: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
