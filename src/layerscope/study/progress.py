"""How far a study is and how long it will take: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

from layerscope.study.runner import Standing
from layerscope.study.trial import Outcome, Trial


class Progress:
    """A watcher for :func:`layerscope.study.run` that shows itself on stderr.

    Args:
        total: trials of the study.
        ended: those that had ended before and are not run again.
        every: seconds between lines where stderr is no terminal.
        stream: where to write; stderr if not given.
    """

    def __init__(self, total: int, ended: int = 0, *, every: float = 30.0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._before, self._every, self._here = total, ended, every, 0
        self._start = self._spoken = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task("trials", total=total, completed=ended, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, trial: Trial, outcome: Outcome, now: Standing) -> None:
        """Show one more trial."""
        self._here += 1
        ended = self._before + self._here
        failed = f"{now.failed} failed" if now.failed else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=ended, note=failed)
        if outcome.state == "failed":
            self._say(f"failed {trial.id}: {outcome.error}")
        last = ended >= self._total
        if self._bar is None and (last or time.monotonic() - self._spoken >= self._every):
            self._spoken = time.monotonic()
            then = "finished" if last else f"time left {words(self.left())}"
            self._say(", ".join(part for part in (f"{ended}/{self._total} trials", failed, then) if part))

    def left(self) -> float:
        """Seconds until the end, at the pace of this session."""
        pace = (time.monotonic() - self._start) / max(self._here, 1)
        return pace * (self._total - self._before - self._here)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)


def words(seconds: float) -> str:
    """A duration in words.

    >>> words(42), words(260), words(12345)
    ('42 s', '4 min 20 s', '3 h 26 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {round(s % 3600 / 60)} min"


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("trials"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stream),
    )
