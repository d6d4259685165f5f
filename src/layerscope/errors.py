"""What can go wrong, said once: one base class, few children, and near-miss suggestions.

Every message names what was wrong, where, and what to do instead. The command line prints a
:class:`LayerscopeError` as one line and exits with code 2; anything else is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LayerscopeError(Exception):
    """Base of every error that is the caller's to mend."""


class SpecError(LayerscopeError):
    """A spec string (``group:size=8``) that cannot be read, is unknown or is ambiguous."""


class SourceError(LayerscopeError):
    """A network that cannot be found, imported or built."""


class DataError(LayerscopeError):
    """A data set that is missing, damaged or of the wrong shape."""


class SwapError(LayerscopeError):
    """A layer exchange that cannot be planned or applied."""


class ProbeError(LayerscopeError):
    """A network or batch that cannot be probed."""


class TrainingError(LayerscopeError):
    """A training run that cannot start or cannot go on."""


class StudyError(LayerscopeError):
    """A study file or result store that cannot be read, written or run."""


class BuildError(LayerscopeError):
    """Compiled kernels that cannot be had here; everything still runs on plain PyTorch."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
        """Whether another instruction set would fail alike."""


class MissingExtraError(LayerscopeError):
    """An optional package that is needed here and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}: install it with  pip install 'layerscope[{extra}]'  "
            f"(in a checkout:  pip install -e '.[{extra}]')"
        )
        self.package, self.extra = package, extra


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known names, or with all of them where nothing is near.

    >>> did_you_mean("grp", ["group", "batch"])
    "did you mean 'group'?"
    """
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if not near and name:
        near = [k for k in known if k.startswith(name.lower()) or name.lower().startswith(k)][:3]
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(known)
