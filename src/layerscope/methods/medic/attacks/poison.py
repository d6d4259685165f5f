"""Which samples carry the trigger and what label they get."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from layerscope.data import Dataset, as_dataset
from layerscope.errors import did_you_mean
from layerscope.methods.medic.attacks.images import Range, put, range_of
from layerscope.methods.medic.attacks.triggers import Trigger, Warp
from layerscope.methods.medic.errors import MedicError

Mode = Literal["dirty", "clean", "noise"]


class _Marks(NamedTuple):
    """What :meth:`Poisoned.apply` looks up, on one device."""

    poison: Tensor
    noise: Tensor
    allowed: Tensor
    labels: Tensor


class Poisoned:
    """A data set of which some samples carry a trigger; copies no image, draws the indices once.

    Indexing gives ``(x, y)`` as a torch data set does. ``dirty`` relabels samples of other classes to the target,
    ``clean`` triggers samples of the target class and changes no label, ``noise`` is dirty and adds disturbed samples
    that keep their label (only :class:`Warp` has such a mode).

    Attributes:
        data: the clean data set.
        poison_idx: samples that carry the trigger, ascending.
        noise_idx: samples that are disturbed and keep their label, ascending.
    """

    def __init__(
        self,
        data: Any,
        trigger: Trigger,
        *,
        target: int,
        rate: float,
        mode: Mode = "dirty",
        noise_rate: float = 0.2,
        include_target: bool = False,
        sources: tuple[int, ...] | None = None,
        redraw: bool = False,
        value_range: Range | None = None,
        seed: int = 0,
    ) -> None:
        """Choose the samples.

        Args:
            data: a Dataset or ``(x, y)``.
            trigger: the transform.
            target: class t.
            rate: share of the data set (``dirty``, ``noise``) or of the target class (``clean``) that is triggered.
            mode: see above.
            noise_rate: share of the data set that is disturbed and keeps its label.
            include_target: may dirty samples come from class t itself? Then the effective rate is lower.
            sources: classes that dirty samples may come from; all but t by default.
            redraw: draw anew which of the allowed samples are triggered whenever samples are asked for, from torch's
                global generator, as some released code does; over many epochs nearly all of them are, at some time.
            value_range: (black, white) of the images; by default [0, 1] if they lie in it, otherwise [-1, 1].
            seed: of the choice.

        Raises:
            MedicError: a rate outside [0, 1], a target that is no class, too few samples to choose from.
        """
        self.data: Dataset = data if isinstance(data, Dataset) else as_dataset(data)
        self.trigger, self.target, self.mode, self.sources, self.redraw = trigger, target, mode, sources, redraw
        self.value_range = range_of(self.data.x, value_range)
        if not 0 <= rate <= 1 or not 0 <= noise_rate <= 1:
            raise MedicError(f"rates lie in [0, 1]; got rate={rate}, noise_rate={noise_rate}")
        if not 0 <= target < self.data.classes:
            raise MedicError(f"target {target} is no class of {self.data.name}, which has {self.data.classes}")
        if mode not in get_args(Mode):
            raise MedicError(f"no mode {mode!r}: {did_you_mean(str(mode), get_args(Mode))}")
        if mode == "noise" and not isinstance(trigger, Warp):
            raise MedicError(f"mode='noise' needs a trigger with a noise mode, Warp; got {type(trigger).__name__}")
        y = self.data.y.cpu()
        allowed = y == target if mode == "clean" else torch.ones(len(y), dtype=torch.bool)
        if mode != "clean" and not include_target:
            allowed = y != target
        if sources is not None and mode != "clean":
            allowed = allowed & torch.isin(y, torch.tensor(sources))
        pool = allowed.nonzero().flatten()
        count = round(rate * (len(pool) if mode == "clean" else len(y)))
        if count > len(pool):
            raise MedicError(f"rate {rate} asks for {count} samples, but only {len(pool)} may be triggered")
        generator = torch.Generator().manual_seed(seed)
        self.poison_idx: Tensor = pool[torch.randperm(len(pool), generator=generator)[:count]].sort().values
        self._is_poison = torch.zeros(len(y), dtype=torch.bool).index_fill_(0, self.poison_idx, True)
        others = (~self._is_poison).nonzero().flatten()
        disturbed = min(round(noise_rate * len(y)) if mode == "noise" else 0, len(others))
        self.noise_idx: Tensor = others[torch.randperm(len(others), generator=generator)[:disturbed]].sort().values
        self._is_noise = torch.zeros(len(y), dtype=torch.bool).index_fill_(0, self.noise_idx, True)
        self._allowed, self._chance = allowed, count / max(1, len(pool))
        self._marks: dict[torch.device, _Marks] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        index = torch.tensor([i % len(self)])
        x, y, _ = self.apply(self.data.x[index], index)
        return x[0], int(y[0])

    def apply(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training sees of ``x``, the (perhaps augmented) images at ``index``.

        Returns:
            Images, labels, and which of them carry the trigger (bool), all on the images' device.
        """
        here = self._on(x.device)
        index = index.to(x.device)
        poison, noise, y = here.poison[index], here.noise[index], here.labels[index]
        if self.redraw:
            poison = here.allowed[index] & (torch.rand(len(index)) < self._chance).to(x.device)
            noise = noise & ~poison
            if self.mode != "clean":
                y = torch.where(poison, self.target, y)
        marks = [(poison, self.trigger)] if len(self.poison_idx) else []
        if isinstance(self.trigger, Warp) and len(self.noise_idx):
            marks.append((noise, self.trigger.noise))
        out = x
        # whole batches and a choice afterwards: picking the marked images out would make an accelerator wait
        for mask, transform in marks:
            out = torch.where(mask.view(-1, 1, 1, 1), put(transform, x, index, self.value_range), out)
        return out, y, poison

    def _on(self, device: torch.device) -> _Marks:
        if device not in self._marks:
            y = self.data.y.clone()
            if self.mode != "clean" and not self.redraw:
                y[self.poison_idx.to(y.device)] = self.target
            parts = (self._is_poison, self._is_noise, self._allowed, y)
            self._marks[device] = _Marks(*(part.to(device) for part in parts))
        return self._marks[device]
