"""How far a study is and how long it will take: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from layerscope._bar import Bar
from layerscope.report import numbers
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
        self._bar = Bar(total, "trials", self._stream, done=ended, keep=True)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def __call__(self, trial: Trial, outcome: Outcome, now: Standing) -> None:
        """Show one more trial."""
        self._here += 1
        ended = self._before + self._here
        failed = f"{now.failed} failed" if now.failed else ""
        self._bar.update(ended, failed)
        if outcome.state == "failed":
            self._bar.say(f"failed {trial.id}: {outcome.error}")
        last = ended >= self._total
        if not self._bar.is_shown and (last or time.monotonic() - self._spoken >= self._every):
            self._spoken = time.monotonic()
            then = "finished" if last else f"time left {numbers.seconds(self.left())}"
            self._bar.say(", ".join(part for part in (f"{ended}/{self._total} trials", failed, then) if part))

    def left(self) -> float:
        """Seconds until the end, at the pace of this session."""
        pace = (time.monotonic() - self._start) / max(self._here, 1)
        return pace * (self._total - self._before - self._here)
