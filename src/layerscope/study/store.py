"""The result store: one SQLite file, one row for each trial that ended. One process writes it, any may read.

Only ended trials have a row, so a process that is killed leaves nothing to clean up: what has no row is still to do.
Write-ahead logging keeps the file whole through ``kill -9`` and lets readers look on while a study runs.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layerscope.errors import StudyError
from layerscope.study.lock import FileLock
from layerscope.study.trial import Outcome, State, Trial

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trials (
    id        TEXT PRIMARY KEY,
    function  TEXT NOT NULL,
    params    TEXT NOT NULL,
    state     TEXT NOT NULL CHECK (state IN ('done', 'failed')),
    result    TEXT NOT NULL,
    error     TEXT NOT NULL,
    trace     TEXT NOT NULL,
    seconds   REAL NOT NULL,
    ended     REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """One ended trial."""

    id: str
    function: str
    params: Mapping[str, Any]
    state: State
    result: Mapping[str, Any]
    error: str
    trace: str
    seconds: float
    ended: float
    """Seconds since 1970."""


class Store:
    """An open result store.

    Args:
        path: the SQLite file.
        write: take the one writer's place (made if absent). Otherwise open an existing file for reading.

    Raises:
        StudyError: no such store, not a store, one of a newer version of layerscope, a disk that is full, or
            another process that is writing it.
    """

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None
        if not write and not self.path.exists():
            raise StudyError(f"no results at {self.path}; run the study first:  layerscope study run FILE")
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
            if not self._lock.acquire():
                raise StudyError(f"another process is writing {self.path}; wait for it or stop it, then resume")
        try:
            self._open(write)
        except BaseException:
            self._release()
            raise

    def _open(self, write: bool) -> None:
        with self._errors():
            if write:
                self._db = sqlite3.connect(self.path, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
            else:
                self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
            self._db.execute("PRAGMA busy_timeout=10000")
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if write and not tables:
                self._db.executescript(
                    f"BEGIN; {_SCHEMA} INSERT INTO meta VALUES ('schema', '{SCHEMA_VERSION}'); COMMIT;"
                )
            elif not {"meta", "trials"} <= tables:
                raise StudyError(f"{self.path} is not a layerscope result store")
            version = int(self.meta("schema") or 0)
        if version > SCHEMA_VERSION:
            raise StudyError(
                f"{self.path} was written by a newer layerscope (store version {version}, this one knows "
                f"{SCHEMA_VERSION}): update layerscope; nothing was changed"
            )

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Keep what came of a trial; a second result of the same trial replaces the first.

        Raises:
            StudyError: the disk is full or the file cannot be written; what was kept before stays.
        """
        row = (
            trial.id,
            trial.function,
            json.dumps(trial.arguments, sort_keys=True),
            outcome.state,
            json.dumps(dict(outcome.result)),
            outcome.error,
            outcome.trace,
            outcome.seconds,
            time.time(),
        )
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO trials VALUES (?,?,?,?,?,?,?,?,?)", row)

    def states(self) -> dict[str, State]:
        """Trial id -> how it ended."""
        with self._errors():
            return dict(self._db.execute("SELECT id, state FROM trials"))

    def seconds(self) -> dict[str, float]:
        """Trial id -> how long it took."""
        with self._errors():
            return dict(self._db.execute("SELECT id, seconds FROM trials"))

    def rows(self) -> Iterator[Row]:
        """Every ended trial, ordered by id."""
        with self._errors():
            for row in self._db.execute("SELECT * FROM trials ORDER BY id"):
                yield _row(row)

    def get(self, prefix: str) -> Row:
        """The trial whose id begins with ``prefix``.

        Raises:
            StudyError: none or several.
        """
        with self._errors():
            found = self._db.execute(
                "SELECT * FROM trials WHERE substr(id, 1, ?) = ? LIMIT 2", (len(prefix), prefix)
            ).fetchall()
        if len(found) != 1:
            raise StudyError(
                f"{'no' if not found else 'more than one'} ended trial has an id that begins with {prefix!r}"
            )
        return _row(found[0])

    def meta(self, key: str) -> str | None:
        """A note about the store."""
        with self._errors():
            found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def set_meta(self, key: str, value: str) -> None:
        """Write a note about the store."""
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Close the file and give up the writer's place."""
        self._db.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise StudyError(
                    f"the disk is full: the last result could not be written to {self.path}; all earlier ones are "
                    f"safe. Free some space, then:  layerscope study resume FILE"
                ) from None
            raise StudyError(f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StudyError(f"{self.path} is not a readable result store: {error}") from None


def _row(row: tuple[Any, ...]) -> Row:
    id_, function, params, state, result, *rest = row
    return Row(id_, function, json.loads(params), state, json.loads(result), *rest)
