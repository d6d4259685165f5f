"""Turning an exception inside a network into one sentence that names the layer."""

from __future__ import annotations

import re
from types import TracebackType

from torch import nn

from layerscope.errors import ProbeError

_HINTS = (
    (
        r"Expected more than 1 value per channel",
        "batch statistics need more than one value per channel: a larger batch",
    ),
    (r"Expected more than 1 spatial element", "instance statistics need more than one position: use larger images"),
    (
        r"mat1 and mat2 shapes|to have \d+ channels|size mismatch|normalized_shape|Expected \dD|expected \dD",
        "check x's shape",
    ),
    (r"expected scalar type|should be the same|same dtype", "check the dtypes of x and of the model"),
    (r"smaller than kernel|too small|Kernel size can't be greater", "the images are too small for this network"),
    (
        r"missing \d+ required|takes .* positional argument|unexpected keyword",
        "give several inputs as x=(a, b) or x={'name': a}",
    ),
    (
        r"backward through the graph a second time",
        "the network keeps tensors of an earlier batch with their graph: detach() what it keeps",
    ),
    (r"inference tensors", "build the network outside torch.inference_mode(), or copy it"),
    (r"use_reentrant", "set use_reentrant=False where the network calls checkpoint"),
    (r"out of memory", "use a smaller batch or level='light'"),
)


def where(error: BaseException, model: nn.Module) -> str | None:
    """Path and class of the innermost module of ``model`` whose code was running when ``error`` was raised."""
    paths = {id(module): path for path, module in model.named_modules()}
    found: tuple[str, nn.Module] | None = None
    step: TracebackType | None = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            found = paths[id(owner)], owner
        step = step.tb_next
    if found is None:
        return None
    path, module = found
    return f"{path!r} ({type(module).__name__})" if path else f"the root module ({type(module).__name__})"


def blame(error: Exception, model: nn.Module, given: str, during: str, advice: str | None = None) -> ProbeError:
    """The :class:`ProbeError` to raise from ``error``.

    Args:
        error: what the network raised.
        model: the network.
        given: the shape of its input.
        during: the pass that failed.
        advice: what to do, where the caller knows; else looked up by the error's text.
    """
    text = " ".join(str(error).split()) or "(without a message)"
    text = text if len(text) <= 300 else text[:297] + "..."
    place = where(error, model)
    hint = advice or next((h for pattern, h in _HINTS if re.search(pattern, text, re.IGNORECASE)), None)
    return ProbeError(
        f"the {during} pass failed{f' in {place}' if place else ''}: {type(error).__name__}: {text}; "
        f"the input was {given}{f' - {hint}' if hint else ''}"
    )
