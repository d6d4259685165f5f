"""A callback for PyTorch Lightning that probes the module while Lightning trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerscope.errors import MissingExtraError
from layerscope.probe import Level
from layerscope.probe.outputs import Loss, Select
from layerscope.training.watching import Watch, watch


def lightning_callback(
    batch: Any = None,
    *,
    every: int = 100,
    level: Level = "standard",
    loss: Loss = "cross_entropy",
    batch_size: int | None = None,
    output: Select = None,
) -> Any:
    """A ``lightning.pytorch.Callback`` that looks at the module after every ``every`` optimizer steps.

    Headline numbers go to the trainer's loggers as ``probe/...``; all frames are in the callback's ``watch``::

        probe = lightning_callback(every=50)
        Trainer(callbacks=[probe]).fit(module, loader)
        probe.watch.series("readout_cosine")

    Args:
        batch: ``(x, y)`` to probe on; the first training batch if left out.
        every: as in :func:`layerscope.training.watch`, like the rest.
        level: how much to measure.
        loss: the loss that gradients are taken of.
        batch_size: splits the batch into training batches.
        output: which part of the module's output to use.

    Raises:
        MissingExtraError: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        raise MissingExtraError("lightning", "lightning", "the Lightning callback") from None
    # Put together at run time, because the base class exists only where Lightning is installed.
    made: Any = type("LayerscopeCallback", (_Hooks, Callback), {})
    callback = made()
    callback.arguments = {"every": every, "level": level, "loss": loss, "batch_size": batch_size, "output": output}
    callback.batch = batch
    return callback


class _Hooks:
    """What the callback does, without Lightning's base class."""

    arguments: Mapping[str, Any]
    batch: Any = None
    watch: Watch | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin with the first batch: earlier there is nothing to probe on."""
        if self.watch is None:
            chosen = batch if self.batch is None else self.batch
            self.watch = watch(pl_module, chosen, sinks=[_Loggers(trainer)], **self.arguments)
            self.watch.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop looking."""
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop looking."""
        self._stop()

    def _stop(self) -> None:
        if self.watch is not None:
            self.watch.__exit__(None, None, None)


class _Loggers:
    """The loggers of a Lightning trainer as a sink."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand the numbers on."""
        for logger in self._trainer.loggers:
            logger.log_metrics(dict(values), step)
