"""A run under way: step after step, what happens between the steps, and its file on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerscope.errors import TrainingError
from layerscope.training import checkpoint as store
from layerscope.training.batches import Batches
from layerscope.training.callbacks import Callback, Run
from layerscope.training.evaluation import evaluate, modes_kept
from layerscope.training.history import History
from layerscope.training.interrupt import deferred_interrupt
from layerscope.training.progress import Progress
from layerscope.training.record import Record
from layerscope.training.seeds import own_generators
from layerscope.training.sinks import Sink
from layerscope.training.stepper import Stepper

#: On an accelerator losses are fetched this seldom, so that it never waits for the Python side.
_FETCH_EVERY = 16


@dataclass(frozen=True)
class Watchers:
    """Who looks on: nothing here changes the result, except what callbacks do on purpose."""

    callbacks: Sequence[Callback]
    sinks: Sequence[Sink]
    log_every: int
    eval_data: Any
    progress: bool | None


@dataclass(frozen=True)
class Kept:
    """The file that a run is kept in, and how often it is written."""

    path: Path
    every: int


class Session:
    """Takes a run from where it stands to its end, a divergence, a callback's stop or an interruption."""

    def __init__(
        self, stepper: Stepper, batches: Batches, watchers: Watchers, kept: Kept | None, described: Mapping[str, str]
    ) -> None:
        self.stepper, self.batches, self.watchers, self.kept = stepper, batches, watchers, kept
        self.settings = stepper.settings
        self.described = dict(described)
        self.record = Record(self.settings.loss_limit)
        self.at = Run(stepper.model, stepper.optimizer, stepper.total)
        self.fetch_every = 1 if stepper.device.type == "cpu" or watchers.callbacks else _FETCH_EVERY
        self.begun = time.perf_counter()

    def run(self) -> History:
        """Train.

        Raises:
            KeyboardInterrupt: Ctrl-C; if the run is kept in a file, after that has been written.
        """
        with ExitStack() as stack:
            stack.enter_context(own_generators(self.stepper.device))
            stack.enter_context(modes_kept(self.stepper.model))
            bar = stack.enter_context(Progress(self.at.total, shown=self.watchers.progress))
            interrupted = stack.enter_context(deferred_interrupt(self.kept is not None))
            self.stepper.model.train()
            self._call("on_start")
            while not self._is_over() and not interrupted():
                batch = self.batches.batch(self.at.step)
                self.record.add(*self.stepper.take(self.at.step, batch, self._on_gradients))
                self.at.step += 1
                if self._is_due(self.fetch_every):
                    self._fetch(bar)
                self._between_steps()
            self._fetch(bar)
            if not interrupted():
                self._conclude()
            self._call("on_end")
            self.stepper.optimizer.zero_grad(set_to_none=True)
            self.save()
            if interrupted():
                raise KeyboardInterrupt
        return self.record.history(
            planned=self.at.total,
            seconds=self._seconds(),
            seed=self.settings.seed,
            batch_size=self.batches.batch_size,
            settings=self.described,
        )

    def save(self) -> None:
        """Write the run to its file, if it has one."""
        if self.kept is None:
            return
        self.record.fetch()
        own = {
            "record": self.record.state_dict(),
            "step": self.at.step,
            "epoch": self.at.epoch,
            "stopped": self.at.stopped,
            "seconds": self._seconds(),
            "callbacks": [callback.state_dict() for callback in self.watchers.callbacks],
            "described": self.described,
        }
        store.save(self.kept.path, {**self.stepper.state_dict(), **own})

    def restore(self) -> None:
        """Take the run up from its file.

        Raises:
            TrainingError: the file is damaged or holds another run.
        """
        assert self.kept is not None
        state = store.load(self.kept.path)
        store.require_same(self.kept.path, state["described"], self.described)
        callbacks = self.watchers.callbacks
        if len(state["callbacks"]) != len(callbacks):
            raise TrainingError(
                f"{self.kept.path} was written with {len(state['callbacks'])} callbacks, this run has {len(callbacks)}"
            )
        self.stepper.load_state_dict(state)
        self.record.load_state_dict(state["record"])
        self.at.step, self.at.epoch, self.at.stopped = state["step"], state["epoch"], state["stopped"]
        self.begun = time.perf_counter() - state["seconds"]
        for callback, own in zip(callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(own)

    def _between_steps(self) -> None:
        self._call("on_step")
        if self.batches.ends_epoch(self.at.step - 1):
            self.at.epoch += 1
            self._call("on_epoch")
        every = self.settings.eval_every
        if self.watchers.eval_data is not None and every and self._is_due(every) and self.record.diverged_at is None:
            self._evaluate()
        if self.watchers.sinks and self._is_due(self.watchers.log_every):
            self.record.fetch()
            self._log({"loss": self.record.losses[-1], "lr": self.record.lrs[-1], **self.record.last_metrics()})
        if self.kept is not None and self._is_due(self.kept.every):
            self.save()

    def _conclude(self) -> None:
        record = self.record
        if record.diverged_at is None and not _is_finite(self.stepper.model):
            # The last update broke the network, and no further loss was there to show it.
            record.diverged_at = self.at.step - 1
        is_evaluated = bool(record.evaluations) and record.evaluations[-1].step == self.at.step
        if self.watchers.eval_data is not None and not is_evaluated and record.diverged_at is None:
            self._evaluate()

    def _is_over(self) -> bool:
        return self.at.step >= self.at.total or self.at.stopped or self.record.diverged_at is not None

    def _is_due(self, every: int) -> bool:
        return self.at.step % every == 0

    def _on_gradients(self) -> None:
        self._call("on_gradients")

    def _call(self, moment: str) -> None:
        for callback in self.watchers.callbacks:
            getattr(callback, moment)(self.at)

    def _fetch(self, bar: Progress) -> None:
        self.record.fetch()
        if self.record.losses:
            self.at.loss, self.at.lr = self.record.losses[-1], self.record.lrs[-1]
            self.at.metrics = self.record.last_metrics()
            bar.step(self.at.step, self.at.loss, self.at.metrics.get("accuracy"))

    def _evaluate(self) -> None:
        batch_size = max(256, self.settings.batch_size or 0)
        result = evaluate(
            self.stepper.model,
            self.watchers.eval_data,
            batch_size=batch_size,
            loss=self.settings.loss,
            output=self.settings.output,
            step=self.at.step,
        )
        self.record.evaluations.append(result)
        accuracy = {} if result.accuracy is None else {"eval/accuracy": result.accuracy}
        self._log({"eval/loss": result.loss, **accuracy})

    def _log(self, numbers: Mapping[str, float]) -> None:
        for sink in self.watchers.sinks:
            sink.log(numbers, self.at.step)

    def _seconds(self) -> float:
        return time.perf_counter() - self.begun


def _is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
