"""``layerscope show``: a result that was written earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def show(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
) -> None:
    """Show a comparison that `compare` or `diagnose` wrote with --json, as a table and as a page.

    Args:
        file: The JSON file.
        html: Write one self-contained page here.
    """
    from layerscope import report
    from layerscope.verdict.types import Comparison

    result = Comparison.from_json(file)
    report.print_result(result)
    if html:
        print(f"page: {result.to_html(html)}")


COMMAND = show
