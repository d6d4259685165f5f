"""``profile``: one forward and backward pass of any network, seen layer by layer; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from layerscope import __version__
from layerscope.errors import ProbeError, did_you_mean
from layerscope.probe.blame import blame
from layerscope.probe.finalise import Site, average, finalise
from layerscope.probe.functional import FunctionalOps
from layerscope.probe.inputs import Batch, check_batch, check_model
from layerscope.probe.noise import measure_batch_noise, quiet_dropout
from layerscope.probe.outputs import Loss, Select, loss_of, pick
from layerscope.probe.points import Point, find_points
from layerscope.probe.readout import Head, Readout
from layerscope.probe.recorder import Recorder
from layerscope.probe.records import Level, Profile
from layerscope.probe.reducers import reduce_gradient
from layerscope.probe.state import unchanged
from layerscope.quantities import rank, similarity, spread


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
            [N, K] and half the mean square otherwise.
        level: ``light`` moments and gradients; ``standard`` also similarity everywhere and soft ranks (of up to 32
            samples) after activations and blocks; ``deep`` soft ranks of all samples, also after norms, and extremes.
        loss: ``cross_entropy``, ``mse`` or a function of (output, y) that returns a scalar.
        batch_size: the training batch size; the data are probed in whole batches of it and averaged. None: one batch.
        functional: also record functions that are no modules, such as ``F.relu`` and ``+``.
        output: which part of the model's output to take: a key, an index or a function.
        select: glob patterns of module paths; record only these.
        blocks: glob patterns of module paths that are blocks, instead of judging by class names.
        batch_noise: measure nu, by extra forward passes. None: where the data hold more than one batch and the level
            is not ``light``.
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
    model, at, dtype = check_model(model, device)
    takes_ids = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    data, notes = check_batch(batch, batch_size, at, dtype, takes_ids=takes_ids)
    points = find_points(model, select=select, blocks=blocks)
    noisy = batch_noise if batch_noise is not None else level != "light" and data.chunks > 1
    with unchanged(model), torch.inference_mode(False), torch.enable_grad():
        if seed is not None:
            torch.manual_seed(seed)
        for module in model.modules():
            module.training = True
        run = _Run(model, points, level, loss, output, functional, at)
        chunks = [run.chunk(x, y) for x, y in data]
        nu = run.batch_noise(data, seed) if noisy else None
        weights = run.weights(len(chunks))
    if not any("grad_norm" in site.values for chunk in chunks for site in chunk.sites):
        notes.append("no gradient reached any layer: the output does not depend on anything that requires a gradient")
    first = chunks[0]
    return Profile(
        source=source or type(model).__name__,
        norm=norm,
        records=average([c.sites for c in chunks], weights),
        level=level,
        batch_size=data.size,
        chunks=len(chunks),
        in_shape=tuple(data.x.shape[1:]),
        seed=seed,
        loss=_mean([c.loss for c in chunks]),
        classifier=first.classifier,
        readout_cosine=_mean([c.readout.get("cosine") for c in chunks]),
        readout_cosine_unpooled=_mean([c.readout.get("unpooled") for c in chunks]),
        readout_effective_rank=_mean([c.readout.get("rank") for c in chunks]),
        readout_spread=_mean([c.readout.get("spread") for c in chunks]),
        batch_noise=nu,
        dtype=str(dtype).removeprefix("torch."),
        device=str(at),
        seconds=time.perf_counter() - started,
        versions=(("layerscope", __version__), ("torch", torch.__version__)),
        warnings=tuple(dict.fromkeys([*notes, *run.notes])),
        context=tuple(context),
    )


@dataclass(frozen=True)
class _Chunk:
    sites: list[Site]
    loss: float
    classifier: str | None
    readout: dict[str, float]


class _Run:
    """The passes over one model: hooks on, forward, loss, backward, hooks off."""

    def __init__(
        self,
        model: nn.Module,
        points: list[Point],
        level: Level,
        loss: Loss,
        output: Select,
        functional: bool,
        device: torch.device,
    ) -> None:
        self.model, self.points, self.level, self.loss, self.output = model, points, level, loss, output
        self.functional, self.device = functional, device
        self.notes: list[str] = []
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.frozen = len(self.trainable) < sum(1 for _ in model.parameters()) or not self.trainable
        self._grad_norms: dict[int, Tensor] = {}

    def chunk(self, x: Tensor, y: Any) -> _Chunk:
        """One training batch forward and backward."""
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(self.points, self.level, self.device.type))
            readout = stack.enter_context(Readout(self.model, lambda: len(recorder.traces)))
            if self.functional:
                stack.enter_context(FunctionalOps(self.model, self.points, recorder))
            # with frozen layers the gradient has to be carried to them by the input
            x = x.clone().requires_grad_() if self.frozen and x.is_floating_point() else x
            recorder.start(len(x))
            try:
                returned = self.model(x)
            except ProbeError:
                raise
            except Exception as error:
                raise blame(error, self.model, tuple(x.shape), "forward") from error
            recorder.stop()
            out = pick(returned, self.output)
            head = readout.classifier(out)
        value = loss_of(out, y, self.loss)
        self._backward(value, x)
        sites = finalise(recorder.traces)
        if not sites:
            self.notes.append("no layer returned a floating-point tensor with a sample axis")
        return _Chunk(sites, float(value.detach()), head.path if head else None, _readout(head, sites))

    def _backward(self, value: Tensor, x: Tensor) -> None:
        inputs = [*self.trainable, *([x] if x.requires_grad else [])]
        if not value.requires_grad or not inputs:
            return
        try:
            grads = torch.autograd.grad(value, inputs, allow_unused=True)
        except Exception as error:
            raise blame(error, self.model, tuple(x.shape), "backward") from error
        for parameter, grad in zip(self.trainable, grads, strict=False):
            if grad is not None:
                norm = reduce_gradient(grad.coalesce().values() if grad.is_sparse else grad)
                key = id(parameter)
                self._grad_norms[key] = norm + self._grad_norms[key] if key in self._grad_norms else norm

    def weights(self, chunks: int) -> dict[int, tuple[float, float | None]]:
        """``id(module)`` -> norm of its weight and mean norm of the weight's gradient."""
        found: dict[int, tuple[float, float | None]] = {}
        for point in self.points:
            weight = point.module._parameters.get("weight")
            if weight is not None:
                grad = self._grad_norms.get(id(weight))
                found[id(point.module)] = (
                    float(reduce_gradient(weight)),
                    None if grad is None else float(grad) / chunks,
                )
        return found

    def batch_noise(self, data: Batch, seed: int | None) -> float | None:
        """Nu at the training batch size, at the classifier input (or at the output where there is none)."""
        quiet_dropout(self.model)
        with Readout(self.model) as readout, torch.no_grad():

            def read(x: Tensor) -> Tensor:
                readout.start()
                out = pick(self.model(x), self.output)
                head = readout.classifier(out)
                return (head.features if head else out).detach()

            generator = torch.Generator().manual_seed(seed or 0)
            try:
                return measure_batch_noise(read, data.x, data.size, generator)
            except Exception as error:
                raise blame(error, self.model, (data.size, *data.x.shape[1:]), "forward") from error


def _readout(head: Head | None, sites: list[Site]) -> dict[str, float]:
    if head is None:
        return {}
    z = head.features
    found = {"spread": float(spread.relative_spread(z))}
    if len(z) > 1:
        gram = similarity.cosine_gram(z).cpu()
        n = float(gram.trace())
        found["cosine"] = float((gram.sum() - n) / (n * (n - 1))) if n > 1 else float("nan")
        found["rank"] = float(rank.effective_rank(rank.eigenvalues(rank.centred_gram(gram))))
        maps = [s for s in sites[: head.position] if s.trace.kept.positions > 1 and "cosine" in s.values]
        found["unpooled"] = maps[-1].values["cosine"] if maps else found["cosine"]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None
