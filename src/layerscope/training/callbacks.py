"""What can be done between the steps of a run: look, change, stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer


@dataclass
class Run:
    """A training run as callbacks see it."""

    model: nn.Module
    optimizer: Optimizer
    total: int
    """Steps planned."""
    step: int = 0
    """Steps done."""
    epoch: int = 0
    """Epochs done."""
    loss: float = float("nan")
    """Of the last finished step."""
    lr: float = 0.0
    """Learning rate of the last step (first parameter group)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further numbers of the last step."""
    stopped: bool = False

    def stop(self) -> None:
        """Ask the run to end after this step."""
        self.stopped = True


class Callback:
    """Base class of callbacks: overwrite what you need, and the two ``state_dict`` methods if it keeps something."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this session (``run.step`` is not 0 in a resumed one)."""

    def on_gradients(self, run: Run) -> None:
        """Gradients are complete, unscaled and not yet applied: clip, project or record them."""

    def on_step(self, run: Run) -> None:
        """After every optimizer step."""

    def on_epoch(self, run: Run) -> None:
        """After the last step of every epoch."""

    def on_end(self, run: Run) -> None:
        """After the last step of this session, also of one that was interrupted or diverged."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


class Each(Callback):
    """A plain function, called after every ``every`` steps."""

    def __init__(self, function: Callable[[Run], None], every: int = 1) -> None:
        self.function = function
        self.every = every

    def on_step(self, run: Run) -> None:
        """Call the function if it is its turn."""
        if run.step % self.every == 0:
            self.function(run)


def as_callback(item: Callback | Callable[[Run], None]) -> Callback:
    """A callback as it is; a function as one that is called after every step."""
    return item if isinstance(item, Callback) else Each(item)
