"""A network's outputs, loss and accuracy on data, without training; train flags stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.data import Dataset, as_dataset, load
from layerscope.errors import TrainingError
from layerscope.probe.outputs import Select, pick
from layerscope.spec import Spec
from layerscope.training.history import Evaluation
from layerscope.training.steps import LossFn, correct, loss_function, pair, placed


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's train flag is as it was, afterwards, whatever happens inside."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def predict(model: nn.Module, x: Tensor, *, batch_size: int = 256, output: Select = None) -> Tensor:
    """The outputs for ``x``, computed in evaluation mode in batches, on the CPU.

    Args:
        model: any network.
        x: samples [N, ...], on any device.
        batch_size: samples at a time; it changes speed and memory, not the result.
        output: which part of the network's output to take: a key, an index or a function. None: the tensor itself, or
            its ``logits``.

    Returns:
        [N, ...]; logits for a classifier.

    Raises:
        ProbeError: there is no such part in the network's output.
    """
    device, dtype = home(model)
    with modes_kept(model), torch.no_grad():
        model.eval()
        return torch.cat(
            [pick(model(placed(part, device, dtype, False)), output).cpu() for part in torch.split(x, batch_size)]
        )


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int = 256,
    loss: str | LossFn = "cross_entropy",
    output: Select = None,
    step: int | None = None,
) -> Evaluation:
    """Mean loss over samples, and accuracy, in evaluation mode.

    Args:
        model: any network.
        data: a name (its test split), a Dataset, tensors (x, y), or an iterable of (x, y).
        batch_size: samples at a time, for data in memory.
        loss: a mean over the samples of a batch.
        output: which part of the network's output to use, as in :func:`predict`.
        step: training steps done so far, to be kept in the result.

    Raises:
        TrainingError: no samples, or batches that are not (x, y).
        ProbeError: there is no such part in the network's output.
    """
    compute, (device, dtype) = loss_function(loss), home(model)
    total, hits, samples = 0.0, 0, 0
    scores = True
    with modes_kept(model), torch.no_grad():
        model.eval()
        for batch in _batches(data, batch_size):
            x, y = pair(placed(batch, device, dtype, False))
            outputs = pick(model(x), output)
            right = correct(outputs, y)
            scores = scores and right is not None
            hits += int(right.sum()) if right is not None else 0
            total += compute(outputs, y).item() * len(x)
            samples += len(x)
            per_sample = right.numel() // len(x) if right is not None else 1
    if not samples:
        raise TrainingError("there is nothing to evaluate on: the data gave no batch")
    return Evaluation(total / samples, hits / (samples * per_sample) if scores else None, samples, step)


def home(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Device and floating type of the network's first parameter; the CPU and None where it has none."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return (torch.device("cpu"), None) if first is None else (first.device, first.dtype)


def _batches(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, str | Spec):
        data = load(data, "test")
    if isinstance(data, Dataset) or (isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor)):
        whole = as_dataset(data)
        return zip(torch.split(whole.x, batch_size), torch.split(whole.y, batch_size), strict=True)
    if not isinstance(data, Iterable):
        raise TrainingError(f"{type(data).__name__} is nothing to evaluate on: expected a name, (x, y), or batches")
    return data
