"""Which samples a step sees: a seeded order over tensors in memory, or whatever an iterable gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol

import torch
from torch import Tensor

from layerscope.data import Dataset
from layerscope.errors import TrainingError
from layerscope.training.seeds import derive, reseed_everything


class Batches(Protocol):
    """Gives the batch of every step, and knows how long an epoch is."""

    @property
    def steps_per_epoch(self) -> int | None:
        """None where the data does not know its length."""
        ...

    @property
    def batch_size(self) -> int | None:
        """None where the data comes in batches of its own."""
        ...

    def batch(self, step: int) -> Any:
        """The batch of this step; steps are asked for in order, starting anywhere."""
        ...

    def ends_epoch(self, step: int) -> bool:
        """Whether this step's batch was the last one of its epoch."""
        ...


class InMemory:
    """Batches of tensors: in every epoch all samples once, in an order drawn from (seed, epoch).

    The last, incomplete batch of an epoch is left out (which samples those are differs from epoch to epoch): batch
    statistics of a handful of samples would be another experiment.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int) -> None:
        if batch_size > len(data):
            raise TrainingError(
                f"batch_size={batch_size} is larger than {data.name}, which has {len(data)} samples; lower it"
            )
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = len(data) // batch_size
        self._order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """``(x, y)`` of this step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
            self._order = epoch, torch.randperm(len(self.data), generator=generator).to(self.data.x.device)
        index = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        return self.data.x[index], self.data.y[index]

    def ends_epoch(self, step: int) -> bool:
        """Whether this step's batch was the last one of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0


class Stream:
    """Batches of an iterable, such as a DataLoader; one pass over it is an epoch.

    Before every batch the global generators are seeded from (seed, step), so that a DataLoader's shuffling and its
    random transforms are the same in every run and after a resume. A resumed run passes over the batches it has seen.
    """

    def __init__(self, source: Iterable[Any], seed: int) -> None:
        self.source = source
        self.seed = seed
        self.batch_size = None
        self.steps_per_epoch = len(source) if isinstance(source, Sized) else None
        self._iterator: Iterator[Any] | None = None
        self._step = 0
        self._epoch = 0

    def batch(self, step: int) -> Any:
        """The batch of this step, after passing over those before it."""
        while self._step < step:
            self._take()
        return self._take()

    def ends_epoch(self, step: int) -> bool:
        """Whether this step's batch was the last one of its epoch."""
        if self.steps_per_epoch:
            return (step + 1) % self.steps_per_epoch == 0
        return False

    def _take(self) -> Any:
        for _ in range(2):
            reseed_everything(derive(self.seed, "fetch", self._step))
            if self._iterator is None:
                self._iterator = self._start()
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                self._epoch += 1
                continue
            self._step += 1
            return batch
        raise TrainingError(
            f"the data ran out after {self._step} batches: an iterator can be passed over only once; "
            "give a DataLoader, a list of batches, or fewer steps"
        )

    def _start(self) -> Iterator[Any]:
        generator = getattr(self.source, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(derive(self.seed, "order", self._epoch))
        sampler: Any = getattr(self.source, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self._epoch)
        return iter(self.source)
