"""Results and progress on a terminal: colour and bars where a person looks on, plain text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from layerscope.report.views import styled


def print_result(result: object, file: TextIO | None = None) -> None:
    """Print ``result``: in colour on a terminal (unless ``NO_COLOR`` is set), as plain ASCII otherwise."""
    stream = sys.stdout if file is None else file
    lines = styled(result)
    if not stream.isatty():
        print(lines, file=stream)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    for line in lines.lines:
        console.print(Text.assemble(*((piece.text, piece.style) for piece in line)), soft_wrap=True)


@contextmanager
def progress(total: int, label: str, file: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """A bar with the time left on a terminal; silent otherwise. It is drawn on stderr and leaves no trace.

    ::

        with progress(len(jobs), "probing") as step:
            for job in jobs:
                step(job.name)      # says what starts now, and that what was announced before is done
                job.run()
    """
    stream = sys.stderr if file is None else file
    if not stream.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[now]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(label, total=total, now="")
        started = 0

        def step(text: str) -> None:
            nonlocal started
            bar.update(task, completed=started, now=text)
            started += 1

        yield step
