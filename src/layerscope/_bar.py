"""The one progress bar of the package: on a terminal and in a notebook; nothing anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

#: Seconds between two lines in a notebook.
_PAUSE = 0.2


class Bar:
    """Things done of a total, the time left, and a note, on stderr; a context manager.

    On a terminal it is drawn by rich. A notebook's output takes no cursor movements but a carriage return, so there it
    is one line that is written over.

    Args:
        total: how many there are.
        label: what they are.
        stream: where to draw; stderr if not given.
        done: how many were done before.
        keep: leave the finished bar on the terminal.
        shown: True draws it wherever ``stream`` leads, False never; None where a person looks on.
    """

    def __init__(
        self, total: int, label: str, stream: TextIO | None = None, *,
        done: int = 0, keep: bool = False, shown: bool | None = None,
    ) -> None:  # fmt: skip
        self._stream = sys.stderr if stream is None else stream
        self._total, self._label, self._before, self._written, self._spoken = total, label, done, 0, 0.0
        self._rich: Any = None
        self._in_notebook = is_notebook(self._stream) and shown is not False
        if not self._in_notebook and (self._stream.isatty() if shown is None else shown):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
            )
            self._rich = Progress(*columns, console=Console(file=self._stream), transient=not keep)
            self._task = self._rich.add_task(label, total=total, completed=done, note="")

    @property
    def is_shown(self) -> bool:
        """Whether anyone sees it."""
        return self._rich is not None or self._in_notebook

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif self._in_notebook:
            self._overwrite("")
            self._stream.write("\r")
            self._stream.flush()

    def update(self, done: int, note: str = "") -> None:
        """So many are done; ``note`` says what goes on."""
        if self._rich is not None:
            self._rich.update(self._task, completed=done, note=note)
        elif self._in_notebook and (now := time.monotonic()) - self._spoken >= _PAUSE:
            self._spoken = now
            here = done - self._before
            left = f"{(now - self._start) / here * (self._total - done):.0f} s left" if here > 0 else ""
            parts = [f"{self._label} {done}/{self._total}", left, note]
            self._overwrite("  ".join(part for part in parts if part))

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._rich is not None:
            self._rich.console.print(line, highlight=False, markup=False)
        else:
            self._overwrite("")
            print(("\r" if self._in_notebook else "") + line, file=self._stream, flush=True)

    def _overwrite(self, text: str) -> None:
        if self._in_notebook:
            self._stream.write("\r" + text.ljust(self._written))
            self._stream.flush()
            self._written = len(text)


def is_notebook(stream: Any) -> bool:
    """Whether this is the output of a notebook's cell."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"
