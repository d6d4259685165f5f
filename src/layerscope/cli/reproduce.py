"""``layerscope reproduce NAME [options]``: run the study behind one of the papers of this checkout.

The studies are not part of the installed package: they stand in ``papers/`` beside their results, and every one has
options of its own (``layerscope reproduce NAME --help``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from layerscope.errors import LayerscopeError, did_you_mean

SCRIPT = "reproduce.py"


def reproduce(args: Sequence[str]) -> None:
    """Run a paper's study with its own options, in a process of its own.

    Raises:
        LayerscopeError: no such study, or no checkout to find it in.
        SystemExit: the study failed; with its exit code.
    """
    known = studies()
    listed = ", ".join(sorted(known)) or "none: they are part of a checkout, not of the installed package"
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: layerscope reproduce NAME [options]\n\nstudies here: {listed}")
        return
    if args[0] not in known:
        told = did_you_mean(args[0], known) if known else f"studies here: {listed}"
        raise LayerscopeError(f"no study {args[0]!r} to reproduce: {told}")
    ended = subprocess.run([sys.executable, str(known[args[0]]), *args[1:]], check=False)
    if ended.returncode:
        raise SystemExit(ended.returncode)


def studies() -> dict[str, Path]:
    """Name -> script, from the nearest ``papers`` folder: above the working directory, else above this file."""
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            found = {path.parent.name: path for path in sorted(folder.glob(f"papers/*/{SCRIPT}"))}
            if found:
                return found
    return {}


#: Takes the words after the command as they are: the options are the study's.
PLAIN = reproduce
