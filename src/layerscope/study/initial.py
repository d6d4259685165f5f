"""Weight initialization as an axis of a study: draw the weights of a built network again, by a named scheme."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.errors import SpecError, did_you_mean
from layerscope.spec import parse_spec

#: What ``init = "as-built"`` means: the weights that the network's own maker drew.
AS_BUILT = "as-built"

_RELU = math.sqrt(2.0)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_SCHEMES: dict[str, Callable[[Tensor, float, torch.Generator], Any]] = {
    "he-normal": lambda w, gain, g: nn.init.normal_(w, std=gain * _RELU / math.sqrt(_fan_in(w)), generator=g),
    "he-uniform": lambda w, gain, g: _uniform(w, gain * _RELU / math.sqrt(_fan_in(w)), g),
    "lecun-normal": lambda w, gain, g: nn.init.normal_(w, std=gain / math.sqrt(_fan_in(w)), generator=g),
    "xavier-normal": lambda w, gain, g: nn.init.xavier_normal_(w, gain, generator=g),
    "orthogonal": lambda w, gain, g: nn.init.orthogonal_(w, gain * _RELU, generator=g),
}


def check(init: str) -> None:
    """Raise if there is no such scheme.

    Raises:
        SpecError: an unknown scheme (with the nearest known one), an unknown parameter, or a gain that is no positive
            number.
    """
    _parse(init)


def reinitialize(module: nn.Module, init: str, seed: int) -> None:
    """Draw the weights of all convolutions and linear layers again, in place; the last linear layer stays as it is.

    Biases, norms and everything else stay too. A weight behind a parametrization (Weight Normalization) is drawn there.

    Args:
        module: a network on the CPU.
        init: ``as-built``, ``he-normal``, ``he-uniform``, ``lecun-normal``, ``xavier-normal`` or ``orthogonal``, each
            but the first with an optional ``gain``, as in ``he-normal:gain=0.5``. ``orthogonal`` is times 1.41.
        seed: of the draws; the global generators are not touched.

    Raises:
        SpecError: as :func:`check`.
    """
    name, gain = _parse(init)
    if name == AS_BUILT:
        return
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in module.modules() if isinstance(m, _WEIGHTED)]
    heads = [m for m in layers if isinstance(m, nn.Linear)][-1:]
    for layer in layers:
        if layer in heads and len(layers) > 1:
            continue
        hidden = getattr(layer, "parametrizations", None)
        weight = hidden.weight.original if hidden is not None and "weight" in hidden else layer.weight
        with torch.no_grad():
            _SCHEMES[name](weight, gain, generator)


def _parse(init: str) -> tuple[str, float]:
    spec = parse_spec(init)
    if spec.name != AS_BUILT and spec.name not in _SCHEMES:
        raise SpecError(f"no initialization {spec.name!r}: {did_you_mean(spec.name, (AS_BUILT, *_SCHEMES))}")
    unknown = [key for key in spec.kwargs if key != "gain" or spec.name == AS_BUILT]
    if unknown:
        raise SpecError(
            f"{init!r}: {spec.name} takes no {unknown[0]!r}" + ("" if spec.name == AS_BUILT else ", only gain=")
        )
    gain = spec.kwargs.get("gain", 1.0)
    if isinstance(gain, bool | str) or not gain > 0:
        raise SpecError(f"{init!r}: gain must be a positive number")
    return spec.name, float(gain)


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def _uniform(weight: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.uniform_(weight, -std * math.sqrt(3.0), std * math.sqrt(3.0), generator=generator)
