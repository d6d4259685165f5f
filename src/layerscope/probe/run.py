"""``profile``: one forward and backward pass of any network, seen layer by layer; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import nn

from layerscope import __version__, inputs
from layerscope.errors import ProbeError, did_you_mean
from layerscope.probe.finalise import average
from layerscope.probe.inputs import check_batch
from layerscope.probe.network import open_network
from layerscope.probe.outputs import Loss, Select
from layerscope.probe.passes import Passes
from layerscope.probe.points import find_points
from layerscope.probe.records import Level, Profile
from layerscope.probe.state import unchanged


def profile(
    model: nn.Module,
    batch: Any,
    *,
    level: Level = "standard",
    loss: Loss = "cross_entropy",
    batch_size: int | None = None,
    functional: bool = False,
    output: Select = None,
    select: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    batch_noise: bool | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    source: str | None = None,
    norm: str = "as is",
    context: Sequence[tuple[str, str]] = (),
) -> Profile:
    """Watch one forward and backward pass in train mode and return the numbers of every layer.

    Parameters, buffers, gradients, flags, hooks and random generators are the same afterwards, also if the network
    raises. No activation is stored: every output is reduced while it passes by.

    Args:
        model: any module, on any device.
        batch: ``(x, y)``; or ``x`` alone, then the loss is cross entropy against label ``i mod K`` for outputs
            [N, K] and half the mean square otherwise. A network with several inputs gets them as a dict ``x`` (by
            keyword, where its ``forward`` names the keys) or a tuple ``x``: ``((image, age), y)``, ``({"ids": a}, y)``.
        level: ``light``: moments at weight layers, norms, and activations or the block around them; gradients at blocks
            and weight layers, but at no layer inside a block of a residual stream: the stream's own gradient stands for
            it, and ``weight_grad`` is there as always. ``standard``: moments everywhere; similarity everywhere but
            between a weight layer and its activation; soft ranks and share of zeros after activations and blocks;
            gradients everywhere but at norms and activations. Both read the values of the first 32 samples of each
            batch; gradients, the loss and the classifier input are of all. ``deep``: moments, similarity and gradients
            of all samples everywhere, soft ranks from all features (of the first 32 samples), extremes; at norms soft
            ranks in place of the similarity.
        loss: ``cross_entropy``, ``mse`` or a function of (output, y) that returns a scalar.
        batch_size: the training batch size; the data are probed in whole batches of it and averaged. None: one batch.
        functional: also record functions that are no modules, such as ``F.relu`` and ``+``.
        output: which part of the model's output to take: a key, an index or a function.
        select: glob patterns of module paths; record only these.
        blocks: glob patterns of module paths that are blocks, instead of judging by class names.
        batch_noise: measure nu, by one extra forward pass for every two batches, or of half a batch where there is one.
            None: where the data hold more than one batch and the level is not ``light``.
        seed: seeds the network's own randomness (dropout) and the draws for nu. None: the generators as they stand.
        device: where the model is expected to be; an absent one is an error, nothing is moved.
        source: how the network is called in reports. None: its class name.
        norm: the norm choice it was built with.
        context: anything to keep beside the numbers.

    Raises:
        ProbeError: model, data, output or loss cannot be used, or the network raised (the message names the layer).
    """
    if level not in get_args(Level):
        raise ProbeError(f"unknown level {level!r}: {did_you_mean(str(level), get_args(Level))}")
    started = time.perf_counter()
    network = open_network(model, device)
    with torch.inference_mode(False):  # copies made here can take part in autograd
        data, notes = check_batch(batch, batch_size, network)
    points = find_points(network, select=select, blocks=blocks)
    noisy = batch_noise if batch_noise is not None else level != "light" and data.chunks > 1
    with unchanged(network), torch.inference_mode(False), torch.enable_grad():
        if seed is not None:
            torch.manual_seed(seed)
        for _, module in network.modules:
            module.training = True
        run = Passes(network, points, level, loss, output, functional=functional, noisy=noisy)
        chunks = [run.chunk(x, y, data.size) for x, y in data]
        nu = run.batch_noise(data, seed, chunks) if noisy else None
        weights = run.weights(len(chunks))
    if not run.gradient_came:
        notes.append("no gradient reached any layer: the output does not depend on anything that requires a gradient")
    if scripted := [path for path, module in network.modules if isinstance(module, torch.jit.ScriptModule)]:
        notes.append(f"{scripted[0]!r} is scripted and takes no hooks: it was run, but its inside was not seen")
    first = chunks[0]
    return Profile(
        source=source or network.name,
        norm=norm,
        records=average([c.sites for c in chunks], weights),
        level=level,
        batch_size=data.size,
        chunks=len(chunks),
        in_shape=inputs.shape_of_one(data.x, data.samples),
        seed=seed,
        loss=_mean([c.loss for c in chunks]),
        classifier=first.classifier,
        readout_cosine=_mean([c.readout.get("cosine") for c in chunks]),
        readout_cosine_unpooled=_mean([c.readout.get("unpooled") for c in chunks]),
        readout_effective_rank=_mean([c.readout.get("rank") for c in chunks]),
        readout_spread=_mean([c.readout.get("spread") for c in chunks]),
        batch_noise=nu,
        own_noise=_mean([c.readout.get("own noise") for c in chunks]),
        dtype=str(network.dtype).removeprefix("torch."),
        device=str(network.device),
        seconds=time.perf_counter() - started,
        versions=(("layerscope", __version__), ("torch", torch.__version__)),
        warnings=tuple(dict.fromkeys([*notes, *run.notes])),
        context=tuple(context),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None
