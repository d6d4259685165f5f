"""How far a training run is, for whoever looks on."""

from __future__ import annotations

from layerscope._bar import Bar


class Progress(Bar):
    """Steps done, loss and time left, in one line on stderr."""

    def __init__(self, total: int, *, shown: bool | None) -> None:
        super().__init__(total, "training", shown=shown)

    def step(self, step: int, loss: float, accuracy: float | None) -> None:
        """So many steps are done."""
        if self.is_shown:
            self.update(step, f"loss {loss:.3g}" + (f", accuracy {accuracy:.0%}" if accuracy is not None else ""))
