"""Switch the noise of a whole network: off, to another mode, or to a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import nn

from layerscope.errors import did_you_mean
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.functional import MODES, Mode
from layerscope.methods.sampling.unit import SamplingLayer


def sampling_layers(model: nn.Module) -> list[tuple[str, SamplingLayer]]:
    """Path and layer of every sampling layer.

    Raises:
        SamplingError: there is none.
    """
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, SamplingLayer)]
    if not found:
        raise SamplingError(f"{type(model).__name__} has no sampling layer: make one with convert()")
    return found


@contextmanager
def using_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Inside, every sampling layer of ``model`` runs in this mode; afterwards each in its own again."""
    if mode not in MODES:
        raise SamplingError(f"no mode {mode!r}; {did_you_mean(mode, MODES)}")
    layers = [layer for _, layer in sampling_layers(model)]
    before = [layer.mode for layer in layers]
    try:
        for layer in layers:
            layer.mode = mode
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.mode = old


def deterministic(model: nn.Module, mode: Literal["mean", "sign"] = "mean") -> AbstractContextManager[None]:
    """A context in which nothing is random: ``mean`` passes erf(P) on, ``sign`` the more likely value.

    ``model.eval()`` does not do this: the noise of a sampling network belongs to the model, at test time too.
    """
    if mode not in ("mean", "sign"):
        raise SamplingError(f"deterministic evaluation is by 'mean' or 'sign', not {mode!r}")
    return using_mode(model, mode)


@contextmanager
def seeded(model: nn.Module, seed: int | torch.Generator) -> Iterator[torch.Generator]:
    """Inside, the layers draw from a generator of their own; the global ones are not touched.

    A network on several devices gets one generator on each, of this seed. Processes that train together need different
    seeds, such as ``seed + rank``: with the same one all of them draw the same noise. Not for activation checkpointing,
    which draws again in the backward pass and restores only the global generators.

    Args:
        model: a network with sampling layers.
        seed: of new generators, or a generator on the device of all sampling layers.

    Yields:
        The generator of the first sampling layer.

    Raises:
        SamplingError: no sampling layer, a seed of another type, or a generator on another device than a layer.
    """
    if not (isinstance(seed, int) or hasattr(seed, "device")):
        raise SamplingError(f"a seed is an integer or a torch.Generator, not {seed!r}")
    layers = [layer for _, layer in sampling_layers(model)]
    devices = {layer.weight.device for layer in layers}
    generators: dict[torch.device, torch.Generator] = {}
    for device in devices:
        if isinstance(seed, int):
            generators[device] = torch.Generator(device).manual_seed(seed)
            continue
        if seed.device.type != device.type:
            raise SamplingError(
                f"the generator is on {seed.device}, a sampling layer on {device}: make it with "
                f"torch.Generator('{device}'), or give an integer seed"
            )
        generators[device] = seed
    before = [layer.generator for layer in layers]
    try:
        for layer in layers:
            layer.generator = generators[layer.weight.device]
        yield generators[layers[0].weight.device]
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.generator = old


@contextmanager
def folded(model: nn.Module, copies: int) -> Iterator[None]:
    """Inside, the first sampling layer that runs draws ``copies`` samples of every input: [N, ...] -> [copies N, ...].

    What comes before it is computed once for all of them, and the network returns [copies N, K], copy after copy. In
    training this takes several samples of every input in one step, which quiets the gradient::

        with sampling.folded(net, 4):
            loss = cross_entropy(net(x), y.repeat(4))

    Args:
        model: a network in which nothing from before the first sampling layer meets something from behind it.
        copies: samples of every input, at least 1.

    Raises:
        SamplingError: no sampling layer, or fewer than one copy.
    """
    if copies < 1:
        raise SamplingError(f"copies must be at least 1, got {copies}")
    layers = [layer for _, layer in sampling_layers(model)]
    first: list[SamplingLayer] = []

    def only_first(layer: nn.Module, _: object) -> None:
        assert isinstance(layer, SamplingLayer)
        layer.copies = 1 if first else copies
        first.append(layer)

    handles = [layer.register_forward_pre_hook(only_first) for layer in layers]
    # the network may run several times inside: every run folds anew
    handles.append(model.register_forward_pre_hook(lambda *_: first.clear(), prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.copies = 1


@contextmanager
def centred(model: nn.Module, momentum: float = 0.1, sync: bool = False) -> Iterator[None]:
    """Inside, units are trained on inputs counted from their running mean m: P = beta v.(z - m) + c.

    Signs seldom have mean zero, and what all inputs have in common then dominates the gradient of every direction.
    Here c takes it. Afterwards it is folded into c, so that the network is a sampling network like any other, whose law
    never depended on the batch::

        with sampling.centred(net):
            for x, y in batches: ...

    The mean is updated by every call in train mode (not for activation checkpointing, which calls twice), and used but
    not updated in eval mode. A state dict that is saved
    inside has a ``centre`` for every layer and fits a network inside only. Layers without c are left as they are.

    Args:
        model: a network with sampling layers.
        momentum: weight of each new batch in the running mean, in (0, 1].
        sync: average the means over all processes. Data-parallel training needs it: otherwise every process counts
            from the mean of its own part, and the networks come apart.

    Raises:
        SamplingError: no sampling layer, one magnitude per location, a momentum outside (0, 1], inside already, or
            ``sync`` without a process group.

    Source: the mean-only batch normalization of Salimans & Kingma 2016 (arXiv 1602.07868, section 4), on inputs and
    with a running mean throughout.
    """
    if not 0 < momentum <= 1:
        raise SamplingError(f"momentum must lie in (0, 1], got {momentum}")
    layers = [layer for _, layer in sampling_layers(model) if layer.c is not None]
    if any(layer.beta.ndim > 1 for layer in layers):
        raise SamplingError("a layer has one magnitude per location: its bias cannot take the mean of the inputs")
    if any(layer.centre is not None for layer in layers):
        raise SamplingError("these layers are centred already")
    if sync and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise SamplingError("sync=True needs torch.distributed.init_process_group()")

    def follow(layer: nn.Module, args: tuple[object, ...]) -> None:
        z = args[0]
        assert isinstance(layer, SamplingLayer)
        if not layer.training or not isinstance(z, torch.Tensor):
            return
        with torch.no_grad():
            mean = layer.mean_input(z).to(layer.weight.dtype)
            if sync:
                torch.distributed.all_reduce(mean)
                mean /= torch.distributed.get_world_size()
            if layer.centre is None:
                _count_from(layer, mean)
            else:
                layer.centre.lerp_(mean, momentum)

    handles = [layer.register_forward_pre_hook(follow) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            if layer.centre is not None:
                _count_from(layer, None)


@torch.no_grad()
def _count_from(layer: SamplingLayer, centre: torch.Tensor | None) -> None:
    """Count the bias from another centre; the law stays what it was."""
    c, bias = layer.c, layer.bias()
    assert c is not None
    assert bias is not None
    c.copy_(bias if centre is None else bias + layer.pull(centre))
    layer.centre = centre
