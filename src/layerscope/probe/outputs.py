"""Finding the tensor that the loss is taken on, and the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerscope import inputs
from layerscope.errors import ProbeError, did_you_mean

#: The label that torch's cross entropy leaves out.
IGNORED = -100

Select = str | int | Callable[[Any], Tensor] | None
Loss = Literal["cross_entropy", "mse", "unlabeled"] | Callable[[Tensor, Any], Tensor]
LOSSES = ("cross_entropy", "mse", "unlabeled")


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the first one found in a tuple, list, mapping or dataclass."""
    if isinstance(output, Tensor):
        return output
    for value in _parts(output).values():
        found = first_tensor(value)
        if found is not None:
            return found
    return None


def version(t: Tensor) -> int:
    """How often ``t`` was written to; 0 for a tensor made in inference mode, which does not count."""
    return 0 if t.is_inference() else t._version


def pick(output: Any, select: Select) -> Tensor:
    """The output tensor the loss is taken on.

    Args:
        output: what the model returned.
        select: a key or attribute name, an index, or a function of the output. None: the tensor itself, else its
            ``logits``, else the first floating-point tensor with samples in it, else its ``loss``, else the sum of a
            dict of losses.

    Raises:
        ProbeError: nothing fits; the message lists what the model returned.
    """
    chosen: Any
    if callable(select):
        try:
            chosen = select(output)
        except Exception as error:
            raise ProbeError(
                f"output= raised {type(error).__name__}: {error}; the model returned {_describe(output)}"
            ) from error
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
        chosen = parts["logits"] if isinstance(parts.get("logits"), Tensor) else _first_float(output)
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        what = f"output={select!r}" if isinstance(select, str | int) else "output=" if select is not None else ""
        if what:
            raise ProbeError(
                f"{what} gives {_a(chosen)}, not a floating-point tensor; the model returned {_describe(output)}"
            )
        if output is None:
            raise ProbeError("the model returned None: does its forward lack a return?")
        raise ProbeError(
            f"the model returned {_describe(output)}, in which there is no floating-point tensor to take a loss on; "
            "say which part with output='key', output=index or output=function"
        )
    return chosen


def loss_of(output: Tensor, y: Any, loss: Loss) -> Tensor:
    """The scalar to differentiate; without ``y``, or for ``unlabeled``, a stated default (see :func:`default_loss`).

    A network that returns one number has computed its own loss, and that is taken.

    Raises:
        ProbeError: the loss is unknown, does not fit the output, or does not give a scalar.
    """
    if callable(loss):
        try:
            value = loss(output, y)
        except Exception as error:
            raise ProbeError(
                f"loss= raised {type(error).__name__}: {' '.join(str(error).split())}; it was given an output of shape "
                f"{tuple(output.shape)} and y {'None' if y is None else inputs.shapes(y)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ProbeError(f"loss(output, y) must return one number as a tensor, got {got}: take a mean")
        return value.reshape(())
    if loss not in LOSSES:
        raise ProbeError(f"unknown loss {loss!r}: {did_you_mean(str(loss), LOSSES)} (or pass a function)")
    if output.numel() == 1 and output.ndim == 0:
        return output.float()
    if y is None or loss == "unlabeled":
        return default_loss(output)
    if not isinstance(y, Tensor):
        raise ProbeError(
            f"loss {loss!r} needs y to be one tensor, got {inputs.shapes(y)}: pass loss=function(output, y)"
        )
    if loss == "mse":
        if y.numel() != output.numel():
            raise ProbeError(
                f"loss 'mse' needs y of the output's shape {tuple(output.shape)}, got {tuple(y.shape)}; "
                "loss='unlabeled' needs none"
            )
        return functional.mse_loss(output.float(), y.to(output.device).float().reshape(output.shape))
    return _cross_entropy(output, y.to(output.device))


def loss(model: nn.Module, batch: Any, *, loss: Loss = "cross_entropy", output: Select = None) -> Tensor:
    """The loss of a network on ``(x, y)``, both as :func:`layerscope.profile` takes them."""
    x, y = batch
    return loss_of(pick(inputs.call(model, x), output), y, loss)


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
        advice = "choose another part with output=..., take loss='unlabeled', or pass loss=function"
        raise ProbeError(
            f"cross entropy needs an output [N, K] and labels [N]; the output is {tuple(output.shape)}, y is "
            f"{tuple(y.shape)}; {'pass y.squeeze(1)' if y.shape == (len(output), 1) else advice}"
        )
    if classes == 1:
        raise ProbeError(
            f"the output is {tuple(output.shape)}, one number a sample, on which cross entropy is always 0: take "
            "loss='mse' (y.float()), loss='unlabeled' or loss=function, such as binary cross entropy with logits"
        )
    y = y.long()
    kept = y[y != IGNORED]
    if not kept.numel():
        raise ProbeError(f"all labels are {IGNORED}, which means ignored: there is no loss to take")
    low, high = int(kept.min()), int(kept.max())
    if low < 0 or high >= classes:
        ignored = f"; write labels to be ignored as {IGNORED}" if y.ndim > 1 else ""
        raise ProbeError(
            f"labels run from {low} to {high}, but the output has {classes} classes (0 to {classes - 1}){ignored}"
        )
    return functional.cross_entropy(output, y)


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
    # an object of the user's own; an empty __dict__ or none at all has no parts
    return (
        {} if isinstance(output, Tensor) else {k: v for k, v in getattr(output, "__dict__", {}).items() if k[0] != "_"}
    )


def _first_float(output: Any) -> Tensor | None:
    """The first floating-point tensor with samples; of single numbers ``loss``, or in a dict the sum of all.

    The parts of a loss are what detection networks return in training.
    """
    found = list(_floats(output))
    rows = next((t for t in found if t.ndim), None)
    if rows is not None or not found:
        return rows
    loss = _parts(output).get("loss")
    if isinstance(loss, Tensor):
        return loss
    return torch.stack(found).sum() if isinstance(output, Mapping) else found[0]


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    else:
        for value in _parts(output).values():
            yield from _floats(value)


def _describe(output: Any) -> str:
    parts = _parts(output)
    if not parts:
        return _a(output)
    inside = ", ".join(
        f"{k}: {str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
        if isinstance(v, Tensor)
        else f"{k}: {type(v).__name__}"
        for k, v in list(parts.items())[:8]
    )
    return f"{type(output).__name__}({inside})"


def _a(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    if value is None:
        return "None"
    return f"an empty {type(value).__name__}" if isinstance(value, list | tuple | dict) else type(value).__name__
