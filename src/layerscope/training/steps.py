"""What one batch is worth: the step function of ordinary classification, its losses, and moving batches to a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import SpecError, TrainingError, did_you_mean
from layerscope.probe.outputs import Select, pick

#: (model, batch) -> loss, or (loss, numbers to record by name); called once for every part of a batch
StepFn = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Mapping[str, Tensor | float]]]
#: (outputs, targets) -> scalar
LossFn = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, LossFn] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}


def loss_function(loss: str | LossFn) -> LossFn:
    """A loss by name, or the function itself.

    Raises:
        SpecError: unknown name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise SpecError(
            f"no loss {loss!r}: {did_you_mean(loss, LOSSES)}, or pass a function (outputs, targets) -> scalar"
        )
    return LOSSES[loss]


class Supervised:
    """The usual step: the loss of the batch's outputs against its targets, and accuracy where outputs are scores."""

    def __init__(self, loss: str | LossFn, output: Select = None) -> None:
        self.loss = loss_function(loss)
        self.output = output

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and ``accuracy`` of ``(x, y)``."""
        x, y = pair(batch)
        outputs = pick(model(x), self.output)
        loss = self.loss(outputs, y)
        hits = correct(outputs.detach(), y)
        return loss, {} if hits is None else {"accuracy": hits.float().mean()}


def pair(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch as ``(x, y)``.

    Raises:
        TrainingError: it is something else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise TrainingError(
        f"a batch is a {type(batch).__name__}; expected (x, y) of two tensors. For other batches pass "
        "step_fn=function(model, batch) -> loss"
    )


def correct(outputs: Tensor, y: Tensor) -> Tensor | None:
    """Which samples (or tokens) have their class as the largest output; None where outputs are no class scores."""
    if y.is_floating_point() or outputs.ndim != y.ndim + 1:
        return None
    return outputs.argmax(1) == y


def placed(batch: Any, device: torch.device, dtype: torch.dtype | None, channels_last: bool) -> Any:
    """The batch on the device, floats in the network's type, images in the wished memory format."""
    if isinstance(batch, Tensor):
        floats = batch.is_floating_point() and dtype is not None
        last = torch.channels_last if channels_last and batch.ndim == 4 else torch.preserve_format
        return batch.to(device, dtype if floats else batch.dtype, non_blocking=True, memory_format=last)
    if isinstance(batch, Mapping):
        return {key: placed(value, device, dtype, channels_last) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(placed(part, device, dtype, channels_last) for part in batch)
    return batch


def parts(batch: Any, count: int) -> list[tuple[Any, float]]:
    """The batch cut into ``count`` parts, each with its share of the samples.

    Raises:
        TrainingError: it is not made of tensors of one length, or has fewer samples than parts.
    """
    if count == 1:
        return [(batch, 1.0)]
    tensors = [part for part in batch if isinstance(part, Tensor)] if isinstance(batch, tuple | list) else []
    if not tensors or len(tensors) != len(batch) or len({len(t) for t in tensors}) != 1:
        raise TrainingError("accumulate needs batches that are tuples of tensors with the same number of samples")
    total = len(tensors[0])
    if total < count:
        raise TrainingError(f"accumulate={count} cannot cut a batch of {total} samples into that many parts")
    cut = zip(*(t.tensor_split(count) for t in tensors), strict=True)
    return [(piece, len(piece[0]) / total) for piece in cut]
