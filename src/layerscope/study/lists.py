"""Named lists of trials: which ones are run, or scored, together, written down before any of them was run.

A study file names them, and each is a text file beside it with one trial id a line::

    [lists]
    fresh = "fresh.txt"

Lines that begin with ``#`` say what the list is for. ``layerscope study run FILE --only fresh`` runs a list in its
order; ``layerscope score FILE --part fresh`` scores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from layerscope.errors import StudyError

Lists = tuple[tuple[str, tuple[str, ...]], ...]

#: Names that mean something else where a part of a study is asked for.
TAKEN = ("all", "development", "held-out")


def read(table: Mapping[str, Any], folder: Path) -> Lists:
    """Every list of a study file's ``[lists]``.

    Raises:
        StudyError: a name that is taken, a file that is absent, an empty list, or an id that stands in one twice.
    """
    return tuple((name, _ids(name, file, folder)) for name, file in table.items())


def check(lists: Lists, known: Iterable[str]) -> None:
    """Raise if a list holds an id that is no trial of the study.

    Raises:
        StudyError: naming the list and the id.
    """
    trials = set(known) if lists else set()
    for name, ids in lists:
        if strange := [i for i in ids if i not in trials]:
            raise StudyError(
                f"lists.{name}: {len(strange)} of {len(ids)} ids are no trials of this study, such as {strange[0]!r}. "
                "An id changes with any argument of its trial: was the study file edited after the list was written?"
            )


def write(path: Path, about: str, ids: Iterable[str]) -> None:
    """Write a list, with ``about`` as the lines that begin with ``#``."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in about.splitlines())
    path.write_text(head + "".join(f"{i}\n" for i in ids))


def _ids(name: str, file: Any, folder: Path) -> tuple[str, ...]:
    if name in TAKEN or ":" in name:
        raise StudyError(f"lists.{name}: choose another name; {', '.join(TAKEN)} and names with a colon are taken")
    if not isinstance(file, str):
        raise StudyError(f"lists.{name} must be the name of a text file, got {file!r}")
    try:
        lines = (folder / file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StudyError(f"lists.{name}: {folder / file} cannot be read: {reason}") from None
    ids = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not ids:
        raise StudyError(f"lists.{name}: {folder / file} holds no trial ids")
    if twice := [i for i in dict.fromkeys(ids) if ids.count(i) > 1]:
        raise StudyError(f"lists.{name}: {twice[0]!r} stands in {folder / file} twice")
    return ids
