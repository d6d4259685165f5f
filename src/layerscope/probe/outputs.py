"""Finding the tensor that the loss is taken on, and the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from layerscope.errors import ProbeError, did_you_mean

Select = str | int | Callable[[Any], Tensor] | None
Loss = Literal["cross_entropy", "mse"] | Callable[[Tensor, Any], Tensor]


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the first one found in a tuple, list, mapping or dataclass."""
    if isinstance(output, Tensor):
        return output
    for value in _parts(output).values():
        found = first_tensor(value)
        if found is not None:
            return found
    return None


def pick(output: Any, select: Select) -> Tensor:
    """The output tensor the loss is taken on.

    Args:
        output: what the model returned.
        select: a key or attribute name, an index, or a function of the output. None: the tensor itself, else its
            ``logits``, else the first floating-point tensor in it.

    Raises:
        ProbeError: nothing fits; the message lists what the model returned.
    """
    chosen: Any
    if callable(select):
        chosen = select(output)
    elif select is not None:
        parts = _parts(output)
        key = str(select)
        if key not in parts:
            hint = f" ({did_you_mean(key, parts)})" if parts else ""
            raise ProbeError(f"output={select!r} is not in what the model returned: {_describe(output)}{hint}")
        chosen = parts[key]
    elif isinstance(output, Tensor):
        chosen = output
    else:
        parts = _parts(output)
        chosen = parts["logits"] if "logits" in parts else _first_float(output)
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        raise ProbeError(
            f"the model returned {_describe(output)}, in which there is no floating-point tensor to take a loss on; "
            "say which part with output='key', output=index or output=function"
        )
    return chosen


def loss_of(output: Tensor, y: Any, loss: Loss) -> Tensor:
    """The scalar to differentiate; ``y`` None takes a stated default (see :func:`default_loss`).

    Raises:
        ProbeError: the loss is unknown, does not fit the output, or does not give a scalar.
    """
    if callable(loss):
        value = loss(output, y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ProbeError(f"loss(output, y) must return one number as a tensor, got {got}: take a mean")
        return value.reshape(())
    if loss not in ("cross_entropy", "mse"):
        raise ProbeError(f"unknown loss {loss!r}: {did_you_mean(str(loss), ['cross_entropy', 'mse'])} or a function")
    if y is None:
        return default_loss(output)
    if loss == "mse":
        if y.numel() != output.numel():
            raise ProbeError(f"loss 'mse' needs y of the output's shape {tuple(output.shape)}, got {tuple(y.shape)}")
        return functional.mse_loss(output.float(), y.to(output.device).float().reshape(output.shape))
    return _cross_entropy(output, y.to(output.device))


def default_loss(output: Tensor) -> Tensor:
    """The loss without labels: cross entropy against label ``i mod K`` for outputs [N, K], K > 1, else mean square / 2.

    At initialization labels say nothing about the network yet, so any fixed ones measure the same gradients.
    """
    if output.ndim == 2 and output.shape[1] > 1:
        labels = torch.arange(len(output), device=output.device) % output.shape[1]
        return functional.cross_entropy(output.float(), labels)
    return output.float().square().mean() / 2


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    output = output.float()
    if y.is_floating_point():
        if y.shape != output.shape:
            raise ProbeError(
                f"y is floating point of shape {tuple(y.shape)}: class probabilities need the output's shape "
                f"{tuple(output.shape)}; class labels must be integers (y.long()); for regression use loss='mse'"
            )
        return functional.cross_entropy(output, y.float())
    if output.ndim == 3 and y.shape == output.shape[:2]:
        output, y = output.flatten(0, 1), y.flatten()
    classes = output.shape[1] if output.ndim > 1 else 0
    if output.ndim < 2 or y.shape != output.shape[:1] + output.shape[2:]:
        raise ProbeError(
            f"cross entropy needs an output [N, K] and labels [N]; the output is {tuple(output.shape)}, y is "
            f"{tuple(y.shape)}; choose another part with output=..., or pass loss=function"
        )
    low, high = int(y.min()), int(y.max())
    if (low < 0 and low != -100) or high >= classes:
        raise ProbeError(f"labels run from {low} to {high}, but the output has {classes} classes (0 to {classes - 1})")
    return functional.cross_entropy(output, y.long())


def _parts(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(k): v for k, v in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        named = dict(zip(output._fields, output, strict=True))
        return {**named, **{str(i): v for i, v in enumerate(output)}}
    if isinstance(output, tuple | list):
        return {str(i): v for i, v in enumerate(output)}
    return {}


def _first_float(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    for value in _parts(output).values():
        found = _first_float(value)
        if found is not None:
            return found
    return None


def _describe(output: Any) -> str:
    parts = _parts(output)
    if not parts:
        return f"{type(output).__name__}"
    inside = ", ".join(
        f"{k}: {str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
        if isinstance(v, Tensor)
        else f"{k}: {type(v).__name__}"
        for k, v in list(parts.items())[:8]
    )
    return f"{type(output).__name__}({inside})"
