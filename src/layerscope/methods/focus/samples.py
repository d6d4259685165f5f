"""Calibration data for the search: read, checked, split by sample or by group, and scored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerscope.methods.focus.errors import FocusError, FocusTypeError

#: (outputs, labels) -> score of each sample in [0, 1]
Metric = Callable[[Any, Tensor], Tensor]
LEAST_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class Samples:
    """Images [N, C, H, W], labels [N, ...] or None, group of each image or None."""

    x: Tensor
    y: Tensor | None
    group: Tensor | None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def take(self, index: Tensor) -> Samples:
        """The samples at these positions."""
        y = None if self.y is None else self.y[index]
        return Samples(self.x[index], y, None if self.group is None else self.group[index])

    def batches(self, size: int) -> list[Tensor]:
        """The images in batches."""
        return list(torch.split(self.x, size))


def read(calibration: Iterable[Any] | Tensor, metric: Metric | str | None) -> Samples:
    """Batches ``x``, ``(x, labels)`` or ``(x, labels, groups)`` as one set.

    Raises:
        FocusError: nothing in it, labels missing where a metric needs them, or batches that do not fit together.
        FocusTypeError: something that is not a tensor.
    """
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        part = (batch,) if isinstance(batch, Tensor) else tuple(batch)
        if not part or not all(isinstance(t, Tensor) for t in part):
            raise FocusTypeError("calibration: expected batches x, (x, labels) or (x, labels, groups) of tensors")
        parts.append(part)
    if not parts or sum(p[0].shape[0] for p in parts) == 0:
        raise FocusError("calibration: it is empty; give a few hundred images of the kind the model will see")
    if any(p[0].ndim != 4 for p in parts):
        raise FocusError("calibration: expected images [N, C, H, W]")
    if len({len(p) for p in parts}) != 1:
        raise FocusError("calibration: some batches have labels and some have not")
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    if metric is not None and metric != "agreement" and len(columns) < 2:
        raise FocusError(f"calibration: the metric {metric!r} needs labels; give batches (x, labels)")
    x = columns[0].detach()
    if len(x) < LEAST_SAMPLES:
        warnings.warn(
            f"only {len(x)} calibration samples: with fewer than {LEAST_SAMPLES} almost nothing can be confirmed",
            RuntimeWarning,
            stacklevel=4,
        )
    return Samples(x, columns[1] if len(columns) > 1 else None, columns[2] if len(columns) > 2 else None)


def split(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Two halves, by sample, or by whole groups where groups are given; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    if samples.group is None:
        order = torch.randperm(len(samples), generator=generator)
        half = len(samples) // 2
        return samples.take(order[:half]), samples.take(order[half:])
    groups = torch.tensor(sorted(set(samples.group.tolist())))
    if len(groups) < 2:
        raise FocusError("calibration: all samples are of one group, so no half can be held back for confirming")
    order = groups[torch.randperm(len(groups), generator=generator)]
    first, taken = set[float](), 0
    for group in order[:-1].tolist():
        if taken >= len(samples) // 2 and first:
            break
        first.add(group)
        taken += int((samples.group == group).sum())
    inside = torch.tensor([g in first for g in samples.group.tolist()])
    return samples.take(inside.nonzero()[:, 0]), samples.take((~inside).nonzero()[:, 0])


def accuracy(output: Any, labels: Tensor) -> Tensor:
    """1 where the top class is the label."""
    return (logits(output).argmax(1) == labels).float()


def logits(output: Any) -> Tensor:
    """The first tensor of an output, which must be [N, classes].

    Raises:
        FocusError: it is not; give a metric of your own then.
    """
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    if output.ndim != 2:
        raise FocusError(
            f"metric: the model's output has shape {tuple(output.shape)}, which has no top class; "
            "pass metric=f(outputs, labels) -> score of each sample"
        )
    return output


def scorer(metric: Metric | str | None, samples: Samples) -> tuple[str, Metric]:
    """The metric's name and function: accuracy where there are labels, agreement with the dense top class else.

    Raises:
        FocusError: an unknown name.
    """
    if callable(metric):
        return getattr(metric, "__name__", "custom"), metric
    if metric not in (None, "accuracy", "agreement"):
        raise FocusError(f"metric: expected 'accuracy', 'agreement' or a function, got {metric!r}")
    if metric == "agreement" or (metric is None and samples.y is None):
        return "agreement", accuracy  # with the dense classes as labels
    return "accuracy", accuracy


def run(model: Callable[[Tensor], Any], x: Sequence[Tensor]) -> list[Any]:
    """The outputs batch by batch."""
    with torch.no_grad():
        return [model(b) for b in x]


def scores(outputs: Sequence[Any], labels: Tensor, size: int, metric: Metric) -> Tensor:
    """Score of each sample [N], float64."""
    found = [metric(o, y) for o, y in zip(outputs, torch.split(labels, size), strict=True)]
    total = torch.cat([f.reshape(-1) for f in found]).double()
    if total.numel() != labels.shape[0] or not bool(total.isfinite().all()):
        raise FocusError(
            f"metric: expected one finite score per sample ({labels.shape[0]}), got {total.numel()} values"
        )
    return total
