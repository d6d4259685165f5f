"""An ordinary network into a sampling network: linear and convolution layers that feed an activation become units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from layerscope.methods.sampling.calibrate import initialize
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.layers import Binarize, SamplingConv2d, SamplingLinear
from layerscope.methods.sampling.noises import Noise
from layerscope.methods.sampling.unit import SamplingLayer
from layerscope.surgery import Exchange, exchange, is_activation
from layerscope.surgery.adapters import Known, describe
from layerscope.surgery.trace import Flow, Step, trace

_SHAPES = frozenset({"flatten", "reshape", "view", "max_pool2d", "boolean_dispatch", "permute", "transpose"})
_SHAPE_MODULES = (nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d)
#: Activations that a step stands in for: flat on one side or on both. What goes on falling below zero needs a word.
_STEPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softsign)
#: Looked at; what is none of the two that have a sampling form is listed with its reason.
_WEIGHTED = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
#: At eval they hand their input through, so that a trace does not see them.
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


@dataclass(frozen=True)
class Unit:
    """One linear or convolution layer of the network."""

    path: str
    kind: str
    becomes: str | None
    """``SamplingLinear`` or ``SamplingConv2d``; None if it stays."""
    note: str
    """What went with it, or why it stays."""


class Converted:
    """A network that was converted; :meth:`undo` puts the old module objects back, untouched."""

    def __init__(self, units: tuple[Unit, ...], dropped: tuple[str, ...], swap: Exchange) -> None:
        self.units = units
        self.dropped = dropped
        """Paths of the dropout modules that became identities."""
        self._swap = swap

    @property
    def model(self) -> nn.Module:
        """The sampling network: the object that was given, unless it was itself a layer."""
        return self._swap.model

    def undo(self) -> nn.Module:
        """Restore the original network and return it. Trained sampling weights stay with the sampling layers."""
        return self._swap.undo()

    def __str__(self) -> str:
        lines = [f"{u.path}: {u.kind} -> {u.becomes or 'stays'} ({u.note})" for u in self.units]
        return "\n".join([*lines, *(f"{path}: dropout -> identity" for path in self.dropped)])


def convert(
    model: nn.Module,
    example: Tensor,
    *,
    noise: str | Noise = "bernoulli:p=0.5",
    inputs: Literal["binarize", "exact"] = "binarize",
    threshold: float = 0.0,
    target: float = 0.7,
    seed: int = 0,
    any_activation: bool = False,
) -> Converted:
    """Turn every ``nn.Linear`` and ``nn.Conv2d`` whose output goes only to an activation into sampling units, in place.

    The norm and the activation behind it become identities: the unit normalizes and decides by itself. So does every
    dropout, which would put zeros among the signs; the noise is in the units. The weights are carried over as
    directions. Magnitudes and biases are set from the example (:func:`initialize`) and then take over the scale and
    shift of the norm that stood there, so that P follows ``target`` times the old normalized pre-activation. The
    classifier, and layers that feed something else, stay; ``str(converted)`` says why. A layer whose inputs turn out
    not to be signs (behind an average pool, a sum, a norm) takes the exact variance.
    Expect to train (or fine-tune) afterwards: a threshold is not a ReLU.

    Args:
        model: an ordinary network; run once in eval mode to see what feeds what.
        example: a batch of real inputs, at least 2 and better 100: magnitudes are set from it.
        noise: see :class:`SamplingLinear`.
        inputs: what to do with the network's real-valued input: ``binarize`` it at ``threshold``, or let the first
            layer divide by the ``exact`` variance.
        threshold: where inputs are binarized.
        target: standard deviation of P after initialization.
        seed: of the samples drawn during initialization.
        any_activation: also convert layers before an activation that no step resembles, such as GELU or LeakyReLU.

    Raises:
        SamplingError: no layer can be converted (with the reason for each), fewer than two examples, or an example
            that is not a tensor of finite numbers.
        SwapError: the example does not run, or the network is wrapped, compiled or scripted.
    """
    if not isinstance(example, Tensor):
        raise SamplingError(f"the example must be one tensor of inputs [N, ...], got {type(example).__name__}")
    if example.is_floating_point() and not bool(example.isfinite().all()):
        raise SamplingError("the example holds NaN or infinity: magnitudes cannot be set from it")
    if len(example) < 2:
        raise SamplingError(f"magnitudes are set from the example: give at least 2 inputs, got {len(example)}")
    if inputs not in ("binarize", "exact"):
        raise SamplingError(f"inputs must be 'binarize' or 'exact', not {inputs!r}")
    fused = {id(m) for m in model.modules() if describe(m) is not None}
    flow = trace(model, example, fused)
    units: list[Unit] = []
    new: dict[str, nn.Module] = {}
    made: list[tuple[SamplingLayer, Known | None]] = []
    chains = _chains(model, flow, any_activation)
    for path, module in model.named_modules():
        if path not in chains:
            continue
        kind, chain = type(module).__name__, chains[path]
        if isinstance(chain, _StaysError):
            units.append(Unit(path, kind, None, str(chain)))
            continue
        layer = sampling_layer_like(module, noise)
        door = _reads_input(flow, module)
        note = [f"takes the place of {', '.join(f'{s.name} {s.path!r}' for s in chain)}"]
        if door and inputs == "binarize":
            note.append(f"inputs binarized at {threshold:g}")
        new[path] = nn.Sequential(Binarize(threshold), layer) if door and inputs == "binarize" else layer
        new |= {s.path: nn.Identity() for s in chain}
        made.append((layer, next((k for s in chain if s.module is not None and (k := describe(s.module))), None)))
        units.append(Unit(path, kind, type(layer).__name__, "; ".join(note)))
    if not made:
        reasons = "; ".join(u.note for u in units) or "it has no linear layer and no convolution"
        raise SamplingError(f"no layer of {type(model).__name__} can be converted: {reasons}")
    dropped = tuple(path for path, module in model.named_modules() if isinstance(module, _DROPS))
    new |= {path: nn.Identity() for path in dropped}
    swap = exchange(model, new)
    try:
        with _exact_where_needed([layer for layer, _ in made]) as exact:
            initialize(swap.model, example, target, seed)
        for layer, norm in made:
            _take_over(layer, norm, target)
    except BaseException:
        swap.undo()
        raise
    converted = iter(layer for layer, _ in made)
    for i, unit in enumerate(units):
        if unit.becomes is not None and id(next(converted)) in exact:
            units[i] = replace(unit, note=f"{unit.note}; its inputs are not all -1 or +1: exact variance")
    return Converted(tuple(units), dropped, swap)


class _StaysError(Exception):
    """Why a layer is not converted."""


def _chains(model: nn.Module, flow: Flow, any_activation: bool) -> dict[str, list[Step] | _StaysError]:
    """Path of every linear and convolution layer -> the norm and activation behind it, or why it stays.

    A module that is called at several places can only become an identity at all of them: one that also stands where
    nothing is converted keeps its layers from being converted.
    """
    found: dict[str, list[Step] | _StaysError] = {}
    for path, module in model.named_modules():
        if not isinstance(module, _WEIGHTED):
            continue
        try:
            _checked(module)
            found[path] = _behind(flow, module, any_activation)
        except _StaysError as reason:
            found[path] = reason
    while True:
        taken = {id(step) for chain in found.values() if isinstance(chain, list) for step in chain}
        kept = {
            path: _StaysError(f"{step} behind it is also called where nothing is converted")
            for path, chain in found.items()
            if isinstance(chain, list)
            for step in chain
            if step.module is not None and any(id(call) not in taken for call in flow.calls(step.module))
        }
        if not kept:
            return found
        found |= kept


def _checked(module: nn.Module) -> None:
    """Refuse what no sampling layer has the form of."""
    if is_parametrized(module):
        raise _StaysError(
            "its weight is parametrized, and the unit normalizes by itself: remove_parametrizations() first"
        )
    if type(module) not in (nn.Linear, nn.Conv2d):
        raise _StaysError("sampling units exist for nn.Linear and nn.Conv2d themselves")


def _behind(flow: Flow, module: nn.Module, any_activation: bool) -> list[Step]:
    """The norm and activation that alone read this layer, in order; ends with the activation."""
    calls = flow.calls(module)
    if len(calls) != 1:
        raise _StaysError("the example does not run it" if not calls else f"called {len(calls)} times")
    step, chain = calls[0], list[Step]()
    while True:
        readers = flow.readers(step.outputs[0])
        if step.outputs[0] in flow.results or not readers:
            raise _StaysError("the network's output, which stays real")
        if len(readers) > 1:
            raise _StaysError(f"read by {len(readers)} places, such as {readers[0]}")
        step = readers[0]
        reader = step.module
        if reader is None:
            if step.name not in _SHAPES:
                hint = ": write it as a module, nn.ReLU()" if step.name in ("relu", "relu_") else ""
                raise _StaysError(f"read by {step}, and no activation module follows{hint}")
            continue
        if isinstance(reader, _SHAPE_MODULES):
            continue
        known = describe(reader)
        act = reader if is_activation(reader) else None if known is None else known.act
        if act is not None and is_activation(act):
            if not any_activation and type(act) not in _STEPS:
                raise _StaysError(
                    f"followed by {type(act).__name__}, which no step resembles; any_activation=True converts it anyway"
                )
            return [*chain, step]
        if known is None:
            raise _StaysError(f"read by {step}, and no activation follows")
        chain.append(step)


def _reads_input(flow: Flow, module: nn.Module) -> bool:
    """Whether nothing but a change of shape stands between the network's input and this layer."""
    step = flow.maker(flow.calls(module)[0].inputs[0])
    while step is not None:
        if not (isinstance(step.module, _SHAPE_MODULES) or (step.module is None and step.name in _SHAPES)):
            return False
        step = flow.maker(step.inputs[0])
    return True


def sampling_layer_like(module: nn.Module, noise: str | Noise, bias: bool = True) -> SamplingLayer:
    """A sampling layer in the shape of an ``nn.Linear`` or ``nn.Conv2d``, with its weights as directions."""
    layer: SamplingLayer
    if isinstance(module, nn.Conv2d):
        layer = SamplingConv2d(
            module.in_channels,
            module.out_channels,
            cast("tuple[int, int]", module.kernel_size),
            cast("tuple[int, int]", module.stride),
            cast("tuple[int, int] | str", module.padding),
            cast("tuple[int, int]", module.dilation),
            module.groups,
            bias,
            module.padding_mode,
            noise=noise,
        )
    else:
        assert isinstance(module, nn.Linear)
        layer = SamplingLinear(module.in_features, module.out_features, bias, noise=noise)
    layer.to(device=module.weight.device, dtype=module.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(module.weight)
    layer.weight.requires_grad_(module.weight.requires_grad)
    return layer.train(module.training)


def _take_over(layer: SamplingLayer, norm: Known | None, target: float) -> None:
    """P = target (gamma P' / target + shift): the norm's scale and shift, where there was one."""
    if norm is None or layer.c is None:
        return
    with torch.no_grad():
        if norm.weight is not None:
            layer.beta.mul_(norm.weight.to(layer.beta))
            layer.c.mul_(norm.weight.to(layer.c))
        if norm.bias is not None:
            layer.c.add_(norm.bias.to(layer.c), alpha=target)


@contextmanager
def _exact_where_needed(layers: list[SamplingLayer]) -> Iterator[set[int]]:
    """Inside, a layer that receives anything but -1 and +1 turns to the exact variance before it computes.

    Yields the ids of those that did.
    """
    turned: set[int] = set()

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, SamplingLayer)
        if not bool((args[0].abs() == 1).all()):
            layer.variance = "exact"
            turned.add(id(layer))

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield turned
    finally:
        for handle in handles:
            handle.remove()
