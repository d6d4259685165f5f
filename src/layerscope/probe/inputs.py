"""The batch, checked before anything runs; every complaint says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerscope.errors import ProbeError
from layerscope.probe.network import Network


@dataclass(frozen=True)
class Batch:
    """Checked data on the model's device."""

    x: Tensor
    y: Any
    size: int
    """Samples in one training batch."""

    @property
    def chunks(self) -> int:
        """Whole training batches in the data."""
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for i in range(self.chunks):
            part = slice(i * self.size, (i + 1) * self.size)
            yield self.x[part], None if self.y is None else self.y[part]


def check_batch(batch: Any, batch_size: int | None, network: Network) -> tuple[Batch, list[str]]:
    """The batch as tensors, cut to whole training batches, with notes on what was left out.

    Args:
        batch: ``(x, y)``, or ``x`` alone.
        batch_size: training batch size; None takes the whole batch.
        network: gives the device and, for floating-point inputs, the dtype to bring them to.

    Raises:
        ProbeError: empty, integer where floats are needed, NaN or infinite, too few samples, lengths that differ.
    """
    x, y = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    x, y = _tensor(x, "x"), y if y is None or isinstance(y, dict) else _tensor(y, "y")
    if x.ndim < 2 and not network.takes_ids:
        raise ProbeError(f"x must have a sample axis and at least one more, got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ProbeError(f"x is empty: shape {tuple(x.shape)}")
    if not x.is_floating_point():
        if not network.takes_ids:
            fix = "x.float() / 255" if x.dtype == torch.uint8 else "x.float()"
            raise ProbeError(f"x is {_name(x.dtype)}, a network computes on floating point: pass {fix}")
    else:
        bad = 0 if math.isfinite(float(x.sum())) else int((~x.isfinite()).sum())
        if bad:
            rows = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise ProbeError(
                f"x holds {bad} NaN or infinite values (first in sample {rows[0]}): the data is broken, not the network"
            )
        x = x.to(network.dtype)
    if y is not None and not isinstance(y, dict) and len(y) != len(x):
        raise ProbeError(f"x has {len(x)} samples and y has {len(y)}")
    size = len(x) if batch_size is None else batch_size
    if size < 1:
        raise ProbeError(f"batch_size must be at least 1, got {size}")
    if size > len(x):
        raise ProbeError(
            f"batch_size={size} but only {len(x)} samples were given: give at least one whole training batch"
        )
    left = len(x) % size
    notes = [f"the last {left} of {len(x)} samples do not fill a batch of {size} and were left out"] if left else []
    keep = len(x) - left
    y = y[:keep].to(network.device) if isinstance(y, Tensor) else y
    return Batch(x[:keep].to(network.device), y, size), notes


def _tensor(value: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeError(f"{name} must be a tensor or an array, got {type(value).__name__}") from error
    # A tensor made in inference mode cannot take part in autograd; a copy can.
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
