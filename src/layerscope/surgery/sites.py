"""One place in a network where a norm stands, and what surgery intends to do there: plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["swap", "keep", "refuse"]


@dataclass(frozen=True)
class Site:
    """A norm module of the network. One object reachable by several paths is one site."""

    index: int
    """Position among all sites, in the order of ``named_modules``."""
    paths: tuple[str, ...]
    """Every path that leads to the module; ``""`` is the network itself."""
    kind: str
    """Class name."""
    channels: int
    """C; 0 where it is not known."""
    status: Status
    becomes: str | None = None
    """What it becomes, as a spec: ``group:size=8 + SiLU`` keeps the fused activation. None unless it is exchanged."""
    refused: str | None = None
    """Why it cannot be exchanged; None unless it is refused."""
    note: str = ""
    """Group counts that were adapted, what is not carried over, why it is kept."""
    stage: int | None = None
    """1, 2, ...: which spatial resolution it works at, in order of execution; None without an example."""
    shape: tuple[int, ...] | None = None
    """Shape of its input in the example; None without one, or if it was not executed."""

    @property
    def path(self) -> str:
        """The first path."""
        return self.paths[0]
