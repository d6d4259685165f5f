"""The passes over one network: hooks on, forward, loss, backward, hooks off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope import inputs
from layerscope.errors import ProbeError
from layerscope.probe.blame import blame
from layerscope.probe.draws import draws_in_evaluation, own_noise
from layerscope.probe.finalise import Site, finalise
from layerscope.probe.functional import FunctionalOps
from layerscope.probe.inputs import Batch, integers
from layerscope.probe.network import Network
from layerscope.probe.noise import has_places, measure_batch_noise, quiet_dropout, thinned
from layerscope.probe.outputs import Loss, Select, loss_of, pick
from layerscope.probe.points import Point
from layerscope.probe.readout import Head, Readout
from layerscope.probe.recorder import Recorder
from layerscope.probe.records import Level
from layerscope.probe.reducers import norms
from layerscope.probe.state import Generators
from layerscope.quantities import rank, similarity, spread

#: Own noise below this share of the variance between samples is sums that come in another order.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Chunk:
    """What one training batch gave."""

    sites: list[Site]
    loss: float
    classifier: str | None
    readout: dict[str, float]
    seen: Tensor | None
    """[B, D] the classifier input (or the output where there is none), thinned, where the batch noise is asked for."""


class Passes:
    """The passes over one model: hooks on, forward, loss, backward, hooks off."""

    def __init__(
        self,
        network: Network,
        points: list[Point],
        level: Level,
        loss: Loss,
        output: Select,
        *,
        functional: bool,
        noisy: bool,
    ) -> None:
        self.network, self.model, self.points = network, network.model, points
        self.level, self.loss, self.output, self.functional, self.noisy = level, loss, output, functional, noisy
        self.notes: list[str] = []
        self.trainable = [p for p in network.parameters if p.requires_grad]
        self.frozen = len(self.trainable) < len(network.parameters) or not self.trainable
        weights = {id(p.weight) for p in points}
        self._groups = any(isinstance(m, nn.GroupNorm) for m in self.model.modules())
        self._weights = [id(p) in weights for p in self.trainable]
        self._grad_norms: dict[int, float] = defaultdict(float)
        self.gradient_came = False
        self.stochastic: bool | None = None
        self.own_variance = 0.0
        self.drew = False

    def chunk(self, x: Any, y: Any, samples: int) -> Chunk:
        """One training batch forward and backward."""
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(self.points, self.level, self.network.device.type))
            readout = stack.enter_context(Readout(self.network, lambda: len(recorder.traces)))
            if self.functional:
                stack.enter_context(FunctionalOps(self.network, self.points, recorder))
            if self._is_carried(x):
                x = inputs.mapped(x, _carrier)
            recorder.start(samples)
            generators = Generators(self.network)
            returned = self._forward(x)
            recorder.stop()
            if recorder.hidden:
                self.notes.append(
                    f"{min(recorder.hidden)!r} ran inside a torch.func transform (vmap), and was not seen"
                )
            drew = generators.moved()
            out = pick(returned, self.output)
            head = readout.classifier(out, samples)
            seen = _seen(head, out, samples) if self.noisy else None
            self.drew = self.drew or drew
        value = loss_of(out, y, self.loss)
        self._backward(value, x)
        sites = self._second_look(finalise(recorder.traces), x, samples, generators)
        if head is None:
            self.notes.append("no linear layer makes the output: the classifier input was not measured")
        self.notes += [f"{path!r} {why}" for why, path in recorder.left_out.items()]
        if not sites:
            self.notes.append("no layer returned a floating-point tensor with a sample axis")
        found = _readout(head, sites)
        if head is not None:
            found["own noise"] = 0.0
            if drew and samples > 1 and self._is_stochastic(x):
                found |= self._over_draws(x, samples, head, sites)
        return Chunk(sites, float(value.detach()), head.path if head else None, found, seen)

    def _is_carried(self, x: Any) -> bool:
        """Whether the gradient has to run on into the input."""
        # Frozen layers get theirs only so; and torch (2.13) crashes, CPU, in the backward pass of a GroupNorm whose
        # input lies channels last and needs no gradient.
        return self.frozen or (self._groups and any(_lies_channels_last(t) for _, t in inputs.named(x)))

    def _forward(self, x: Any) -> Any:
        """What the network returns; where it raises, the sentence that names the layer."""
        try:
            return inputs.call(self.model, x)
        except ProbeError:
            raise
        except Exception as error:
            raise blame(error, self.model, inputs.shapes(x), "forward", integers(x)) from error

    def _is_stochastic(self, x: Any) -> bool:
        """Whether the network's noise is always on; asked once, of a network that drew random numbers in train mode."""
        if self.stochastic is None:
            self.stochastic = draws_in_evaluation(self.network, lambda: self._forward(x))
        return self.stochastic

    def _over_draws(self, x: Any, samples: int, head: Head, sites: list[Site]) -> dict[str, float]:
        """What one draw of the classifier input cannot say: the cosine of expectations, and how strong the noise is."""
        maps = _maps(head, sites)
        with Readout(self.network) as readout:

            def read() -> Tensor | None:
                readout.start()
                found = readout.classifier(pick(self._forward(x), self.output), samples)
                return found.features if found else None

            own = own_noise(self.network, read, maps[-1].trace.module if maps else None)
        if own is None or own.ratio < ROUNDING:
            return {}
        self.own_variance = own.variance
        return {"own noise": own.ratio, "cosine": own.cosine, "unpooled": own.unpooled}

    def _second_look(self, sites: list[Site], x: Any, samples: int, generators: Generators) -> list[Site]:
        """Read again in float64 what the sums could not resolve: a small variance around a large mean, or overflow."""
        unclear = frozenset(site.trace.name for site in sites if site.is_unclear)
        if not unclear:
            return sites
        generators.restore()
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(self.points, self.level, self.network.device.type, unclear))
            if self.functional:
                stack.enter_context(FunctionalOps(self.network, self.points, recorder))
            stack.enter_context(torch.no_grad())
            recorder.start(samples)
            self._forward(x)
            recorder.stop()
        clear = {s.trace.name: s for s in finalise([t for t in recorder.traces if t.name in unclear])}
        return [site.corrected(clear[site.trace.name]) if site.trace.name in clear else site for site in sites]

    def _backward(self, value: Tensor, x: Any) -> None:
        leaves = [*self.trainable, *(t for _, t in inputs.named(x) if t.requires_grad)]
        if not value.requires_grad or not leaves:
            return
        try:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
        except Exception as error:
            raise blame(error, self.model, inputs.shapes(x), "backward") from error
        self.gradient_came = self.gradient_came or any(g is not None for g in grads)
        found = {
            id(parameter): grad.coalesce().values() if grad.is_sparse else grad
            for parameter, grad, is_weight in zip(self.trainable, grads, self._weights, strict=False)
            if is_weight and grad is not None
        }
        for key, norm in zip(found, norms(list(found.values())), strict=True):
            self._grad_norms[key] += norm

    def weights(self, chunks: int) -> dict[int, tuple[float, float | None]]:
        """``id(module)`` -> norm of its weight and mean norm of the weight's gradient."""
        weights = [(id(point.module), weight) for point in self.points if (weight := point.weight) is not None]
        # a weight that can be trained and got no gradient has a gradient of zero
        grads = {id(p): self._grad_norms.get(id(p), 0.0) / chunks for p in self.trainable}
        return {
            module: (norm, grads.get(id(weight)))
            for (module, weight), norm in zip(weights, norms([weight for _, weight in weights]), strict=True)
        }

    def batch_noise(self, data: Batch, seed: int | None, chunks: list[Chunk]) -> float | None:
        """Nu at the training batch size, at the classifier input (or at the output where there is none)."""
        if not data.can_be_cut:
            self.notes.append("batch noise was not measured: the batch is a whole, whose samples cannot be exchanged")
            return None
        quiet_dropout(self.network)
        with Readout(self.network) as readout, torch.no_grad():
            same = Generators(self.network)

            def read(index: Tensor) -> Tensor:
                readout.start()
                if self.drew:  # both looks at a sample differ in nothing but the batch
                    same.restore()
                out = pick(inputs.call(self.model, inputs.pick(data.x, index)), self.output)
                return _rows(_seen(readout.classifier(out, len(index)), out, len(index)))

            try:
                if self.drew:  # random masks were on
                    batches = torch.arange(data.samples).view(-1, data.size)
                    first = torch.stack([read(index) for index in batches])
                else:
                    first = torch.stack([_rows(chunk.seen) for chunk in chunks])
                return self._noise(read, first, seed or 0, whole=same.moved() or has_places(self.network))
            except ProbeError as error:
                self.notes.append(str(error))
                return None
            except Exception as error:
                raise blame(
                    error, self.model, inputs.shapes(inputs.pick(data.x, slice(data.size))), "forward"
                ) from error

    def _noise(self, read: Callable[[Tensor], Tensor], first: Tensor, seed: int, *, whole: bool) -> float:
        try:
            generator = torch.Generator().manual_seed(seed)
            return measure_batch_noise(read, first, generator, self.network.dtype, own=self.own_variance, whole=whole)
        except ProbeError:
            raise
        except Exception:
            if whole or len(first) > 1:
                raise
            return self._noise(read, first, seed, whole=True)  # a network that runs on one batch size only


def _seen(head: Head | None, out: Any, samples: int) -> Tensor | None:
    """A copy of what the batch noise is read from, thinned [N, D]; None where there is no row for every sample."""
    if head is None and not (isinstance(out, Tensor) and out.ndim > 1):
        return None
    rows = head.features if head else out.detach().flatten(1)
    return thinned(rows).to("cpu", torch.float64, copy=True) if len(rows) == samples else None


def _rows(seen: Tensor | None) -> Tensor:
    if seen is None:
        raise ProbeError("batch noise was not measured: the output has no row for every sample")
    return seen


def _lies_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _carrier(x: Tensor) -> Tensor:
    return x.clone().requires_grad_() if x.is_floating_point() else x


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
        maps = _maps(head, sites)
        found["unpooled"] = maps[-1].values["cosine"] if maps else found["cosine"]
    return found


def _maps(head: Head, sites: list[Site]) -> list[Site]:
    """The maps before a classifier input of one row per sample, in order."""
    if not head.is_row:
        return []
    return [s for s in sites[: head.position] if s.trace.kept.positions > 1 and "cosine" in s.values]
