"""The batch, checked before anything runs; every complaint says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerscope import inputs
from layerscope.errors import ProbeError
from layerscope.probe.network import Network

#: Mean over standard deviation of the samples above which they look alike; of grey images in 0..1 it is about 1.
OFFSET = 10.0


@dataclass(frozen=True)
class Batch:
    """Checked data on the model's device."""

    x: Any
    """A tensor, or a tuple or dict that holds tensors."""
    y: Any
    samples: int
    size: int
    """Samples in one training batch."""

    @property
    def main(self) -> Tensor:
        """The tensor that stands for the samples."""
        found = inputs.main(self.x)
        assert found is not None
        return found

    @property
    def can_be_cut(self) -> bool:
        """Whether every tensor has one row per sample; otherwise the batch is only good as a whole (a graph)."""
        return inputs.is_even(self.x, self.samples)

    @property
    def chunks(self) -> int:
        """Whole training batches in the data."""
        return self.samples // self.size

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.size == self.samples:
            yield self.x, self.y
            return
        for i in range(self.chunks):
            part = slice(i * self.size, (i + 1) * self.size)
            yield inputs.pick(self.x, part), inputs.pick(self.y, part)


def check_batch(batch: Any, batch_size: int | None, network: Network) -> tuple[Batch, list[str]]:
    """The batch as tensors, cut to whole training batches, with notes on what was left out.

    Args:
        batch: ``(x, y)``, or ``x`` alone.
        batch_size: training batch size; None takes the whole batch.
        network: gives the device and, for floating-point inputs, the dtype to bring them to.

    Raises:
        ProbeError: empty, NaN or infinite, too few samples, lengths that differ.
    """
    x, y = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    x, y = _tensors(x, "x"), None if y is None else _tensors(y, "y")
    _check_values(x, network)
    samples = inputs.count(x, y)
    for name, tensor in inputs.named(y, "y"):
        if tensor.ndim and len(tensor) != samples:
            raise ProbeError(f"x has {samples} samples and {name} has {len(tensor)}")
    size = samples if batch_size is None else batch_size
    if size < 1:
        raise ProbeError(f"batch_size must be at least 1, got {size}")
    if size > samples:
        raise ProbeError(
            f"batch_size={size} but only {samples} samples were given: give at least one whole training batch"
        )
    if size < samples and not inputs.is_even(x, samples):
        raise ProbeError(
            f"x holds tensors of different lengths ({inputs.shapes(x)}), which cannot be cut into batches of {size}: "
            "give one whole training batch and leave batch_size out"
        )
    left = samples % size
    notes = _remarks(x)
    if left:
        notes.append(f"the last {left} of {samples} samples do not fill a batch of {size} and were left out")
    if left:
        x, y = inputs.pick(x, slice(samples - left)), inputs.pick(y, slice(samples - left))
    y = inputs.mapped(y, lambda t: t.to(network.device))
    return Batch(inputs.placed(x, network.device, network.dtype), y, samples - left, size), notes


def _check_values(x: Any, network: Network) -> None:
    main = inputs.main(x)
    if main is None:
        raise ProbeError(f"x holds no tensor with a sample axis: {inputs.shapes(x)}")
    if isinstance(x, Tensor) and x.ndim < 2 and x.is_floating_point():
        raise ProbeError(f"x must have a sample axis and at least one more, got shape {tuple(x.shape)}")
    if main.numel() == 0:
        raise ProbeError(f"x is empty: shape {tuple(main.shape)}")
    alone = isinstance(x, Tensor)
    for name, tensor in inputs.named(x):
        if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
            continue
        # an attention mask, given beside the samples, is infinite on purpose
        broken = ~tensor.isfinite() if alone else tensor.isnan()
        if bad := int(broken.sum()):
            first = int(broken.reshape(len(tensor), -1).any(1).nonzero()[0]) if tensor.ndim else 0
            raise ProbeError(
                f"{name} holds {bad} NaN or infinite values (first in sample {first}): "
                "the data is broken, not the network"
            )


def _remarks(x: Any) -> list[str]:
    """What is wrong with the data before any layer sees them, for a reader who would blame the network."""
    main = inputs.main(x)
    if main is None or len(main) < 2 or not main.is_floating_point():
        return []
    if not all(inputs.is_dense(t) for _, t in inputs.named(x)):
        return []
    if all(torch.equal(t, t[:1].expand_as(t)) for _, t in inputs.named(x) if t.ndim):
        return ["all samples are the same, so that no layer can tell them apart"]
    mean, std = float(main.float().mean()), float(main.float().std())
    if abs(mean) > OFFSET * std:
        return [f"the samples lie at {mean:.3g} with a spread of only {std:.3g}, so that they look alike: centre them"]
    return []


def integers(x: Any) -> str | None:
    """What to do about samples that are integers, where a network could not compute on them; None for others."""
    main = inputs.main(x)
    if main is None or main.is_floating_point():
        return None
    fix = "x.float() / 255" if main.dtype == torch.uint8 else "x.float()"
    return f"x is {_name(main.dtype)}, and this network computes on floating point: pass {fix}"


def _tensors(value: Any, name: str) -> Any:
    """``value`` with arrays and lists of numbers as tensors that are detached from any graph."""
    if isinstance(value, Mapping):
        return {key: _tensors(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, tuple | list) and _holds_arrays(value):
        parts = [_tensors(part, f"{name}[{i}]") for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, Tensor | tuple | list) and next(inputs.named(value), None) is not None:
        return inputs.mapped(value, _free)  # a dataclass
    if name not in ("x", "y") and not hasattr(value, "__array__"):
        return value  # an option beside the samples
    try:
        return _free(torch.as_tensor(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeError(
            f"{name} must be a tensor or an array, got {type(value).__name__}; several inputs are a tuple or a dict"
        ) from error


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_arrays, value))
    return isinstance(value, Mapping) or hasattr(value, "__array__")


def _free(tensor: Tensor) -> Tensor:
    # A tensor made in inference mode cannot take part in autograd; a copy can.
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
