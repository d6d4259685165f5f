"""Probe a network while it is being trained, by any loop: after every so many optimizer steps, changing nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from layerscope.errors import TrainingError
from layerscope.probe import Level, Profile, profile
from layerscope.probe.outputs import Loss, Select
from layerscope.training.sinks import Sink

#: Numbers of a profile that are handed to sinks.
_HEADLINES = (
    "loss",
    "readout_cosine",
    "readout_cosine_unpooled",
    "readout_effective_rank",
    "readout_spread",
    "batch_noise",
)


@dataclass(frozen=True)
class Frame:
    """A network at one moment of its training."""

    step: int
    """Optimizer steps done."""
    profile: Profile


class Watch:
    """The frames taken so far; made by :func:`watch` and used as a context manager."""

    def __init__(
        self, model: nn.Module, batch: Any, every: int, at_start: bool, sinks: Sequence[Sink], options: dict[str, Any]
    ) -> None:
        self.model, self.batch, self.every, self.at_start, self.sinks = model, batch, every, at_start, sinks
        self.options = options
        self.frames: list[Frame] = []
        self.step = 0
        """Optimizer steps seen."""
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        if self._handle is not None:
            raise TrainingError("this watch is already on; make another one with watch(...)")
        if self.at_start and not self.frames:
            self.look()
        self._handle = register_optimizer_step_post_hook(self._after)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]

    def look(self) -> Profile:
        """Probe now, keep the frame and hand its headline numbers to the sinks."""
        seen = profile(self.model, self.batch, **self.options)
        self.frames.append(Frame(self.step, seen))
        numbers = {f"probe/{name}": getattr(seen, name) for name in _HEADLINES}
        for sink in self.sinks:
            sink.log({name: value for name, value in numbers.items() if value is not None}, self.step)
        return seen

    def series(self, quantity: str, layer: str | None = None) -> list[tuple[int, float]]:
        """``(step, value)`` of one quantity over training.

        Args:
            quantity: a field of :class:`~layerscope.probe.records.Profile`, or with ``layer`` of its records.
            layer: name of a record, such as ``stages.0.blocks.2``.

        Raises:
            TrainingError: no such quantity or layer in the frames.
        """
        found = []
        for frame in self.frames:
            try:
                value = getattr(frame.profile if layer is None else frame.profile[layer], quantity)
            except (AttributeError, KeyError):
                where = "a profile" if layer is None else f"layer {layer!r} of the profile"
                raise TrainingError(f"{where} at step {frame.step} has no {quantity!r}") from None
            if value is not None:
                found.append((frame.step, value))
        return found

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        mine = {id(p) for p in self.model.parameters()}
        if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            self.step += 1
            if self.step % self.every == 0:
                self.look()


def watch(
    model: nn.Module,
    batch: Any,
    *,
    every: int = 100,
    at_start: bool = True,
    level: Level = "standard",
    loss: Loss = "cross_entropy",
    batch_size: int | None = None,
    output: Select = None,
    sinks: Sequence[Sink] = (),
) -> Watch:
    """Probe ``model`` on ``batch`` after every ``every`` steps of whatever optimizer trains it.

    Works with any loop, this package's :func:`fit` included: torch itself says when an optimizer has stepped. The probe
    restores parameters, buffers, gradients and random generators, so that the training is the same to the bit::

        with watch(model, (x, y), every=50) as seen:
            train_as_always(model)
        seen.series("readout_cosine")

    Args:
        model: the network that is trained.
        batch: ``(x, y)`` to probe on, the same every time; best a batch of the training size.
        every: optimizer steps between two looks. With several optimizers on one network, each one's steps count.
        at_start: also look before the first step.
        level: how much to measure: ``light``, ``standard`` or ``deep``.
        loss: as in :func:`layerscope.probe.profile`.
        batch_size: splits the batch into training batches of this size.
        output: which part of the network's output to use, as in :func:`layerscope.probe.profile`.
        sinks: get the headline numbers of every look, as ``probe/...``.

    Raises:
        TrainingError: ``every`` is not a whole number of at least 1.
        ProbeError: the network cannot be probed on this batch; on entering, not in the middle of the training.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TrainingError(f"every={every!r} is not a whole number of at least 1")
    options = {"level": level, "loss": loss, "batch_size": batch_size, "output": output, "seed": 0}
    return Watch(model, batch, every, at_start, tuple(sinks), options)
