"""A progress bar on a terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """Steps done, loss and time left, in one line on stderr."""

    def __init__(self, total: int, *, shown: bool | None) -> None:
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty() if shown is None else shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("training"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("training", total=total, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, accuracy: float | None) -> None:
        """Show how far it is."""
        if self._bar is not None:
            note = f"loss {loss:.3g}" + (f", accuracy {accuracy:.0%}" if accuracy is not None else "")
            self._bar.update(self._task, completed=step, note=note)
