"""Results and progress on a terminal: colour and bars where a person looks on, plain text everywhere else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from layerscope._bar import Bar
from layerscope.report.styled import no_wider_than
from layerscope.report.views import styled


def print_result(result: object, file: TextIO | None = None) -> None:
    """Print ``result``: in colour on a terminal (unless ``NO_COLOR`` is set), as plain ASCII otherwise."""
    stream = sys.stdout if file is None else file
    if not stream.isatty():
        print(styled(result), file=stream)
        return
    with no_wider_than(shutil.get_terminal_size().columns):
        lines = styled(result)
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    for line in lines.lines:
        console.print(Text.assemble(*((piece.text, piece.style) for piece in line)), soft_wrap=True)


@contextmanager
def progress(total: int, label: str, file: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """A bar with the time left, on a terminal or in a notebook. It is drawn on stderr and leaves no trace.

    ::

        with progress(len(jobs), "probing") as step:
            for job in jobs:
                step(job.name)      # says what starts now, and that what was announced before is done
                job.run()
    """
    with Bar(total, label, file) as bar:
        started = 0

        def step(text: str) -> None:
            nonlocal started
            bar.update(started, text)
            started += 1

        yield step
