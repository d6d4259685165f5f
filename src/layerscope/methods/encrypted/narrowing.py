"""Fewer channels: which ones hang together, what each is worth on calibration data, and the network without them.

Channels that a residual sum, a depthwise convolution or a group ties together stay or go as one *unit*. A unit's worth
is the error that its absence leaves at the convolutions that read it, after the channels that stay have taken over what
they can: with the covariance S of a convolution's inputs and the weights W_c on channel c that is |W_c|^2 / (S^-1)_cc,
the rule of the optimal brain surgeon (Hassibi and Stork 1992) for whole channels. The same formula gives the
correction of the weights that stay. Units go one by one, the smallest worth for each saved lookup first, but no
convolution falls far below the share that is kept overall: errors of two layers do not add up as the formula has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from layerscope.methods.encrypted.errors import QuantizationError
from layerscope.methods.encrypted.floatgraph import FloatGraph, Step
from layerscope.methods.encrypted.graph import Ints
from layerscope.methods.encrypted.lowering import checked_calibration
from layerscope.methods.encrypted.trace import trace

#: No convolution is left with less than this share of ``keep`` of its output channels.
_LEAST = 3 / 4
#: Added to a covariance, as a share of its mean variance: keeps the inverse of what calibration cannot tell apart.
_RIDGE = 1e-6


def narrow(model: nn.Module | FloatGraph, calib: Tensor | None, keep: float) -> FloatGraph:
    """``model`` with fewer channels, for :func:`~layerscope.methods.encrypted.quantize`.

    Args:
        model: a float network in evaluation mode, or its steps.
        calib: float inputs [N, C, H, W] that look like those to come; some hundreds. With None (steps only) the
            weights alone decide, which is enough for a price and for nothing else.
        keep: share of the activations' and pools' lookups that shall stay, in (0, 1]; 1 changes nothing.

    Returns:
        The steps of the narrower network. It has lost accuracy: measure it, and train it with
        :func:`~layerscope.methods.encrypted.finetune`.

    Raises:
        UnsupportedModuleError: training mode, a network that cannot be traced, or a step without an integer form.
        QuantizationError: ``keep`` out of range, or calibration data that is missing, of another shape or not finite.
    """
    if not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise QuantizationError(f"keep is a share of the lookups in (0, 1], got {keep!r}")
    if isinstance(model, FloatGraph):
        graph = model
    elif calib is None:
        raise QuantizationError(
            "expected calibration inputs beside a network; without them give trace(model, in_shape)"
        )
    else:
        graph = trace(model, calib.shape[1:])
    return graph if keep == 1 else _Narrowing(graph, calib).run(keep)


def widths(before: FloatGraph, after: FloatGraph) -> tuple[tuple[str, int, int], ...]:
    """(convolution, channels that stay, channels before) wherever there are fewer."""
    pairs = zip(before.steps, after.steps, strict=True)
    return tuple((a.name, b.shape[0], a.shape[0]) for a, b in pairs if a.op == "conv" and a.shape != b.shape)


class _Units:
    """Which channels stay or go together: a union-find over the channels of every step."""

    def __init__(self, graph: FloatGraph) -> None:
        self.parent: list[int] = []
        self.frozen: set[int] = set()
        self.of: list[Ints] = []
        for step in graph.steps:
            self.of.append(self._channels(step, [self.of[i] for i in step.inputs], graph))
        self.frozen.update(self.of[-1].tolist())
        self.of = [np.array([self.root(u) for u in ids.tolist()], np.int64) for ids in self.of]
        self.frozen = {self.root(u) for u in self.frozen}

    def root(self, unit: int) -> int:
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def _tie(self, left: Ints, right: Ints) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            self.parent[self.root(b)] = self.root(a)

    def _fresh(self, count: int) -> Ints:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count, dtype=np.int64)

    def _channels(self, step: Step, inputs: list[Ints], graph: FloatGraph) -> Ints:
        if step.op == "conv":
            return self._conv(step, inputs[0])
        if step.op == "add":
            self._tie(inputs[0], inputs[1])
            return inputs[0]
        if step.op == "concat":
            return np.concatenate(inputs)
        if step.op == "flatten":
            return np.repeat(inputs[0], step.shape[0] // max(1, len(inputs[0])))
        if step.op in ("input", "opaque"):
            ids = self._fresh(step.shape[0])
            self.frozen.update(ids.tolist(), *(i.tolist() for i in inputs))
            return ids
        return inputs[0]

    def _conv(self, step: Step, given: Ints) -> Ints:
        outputs, groups = step.shape[0], step.groups
        if groups > 1 and len(given) == groups:  # depthwise: an output is nothing without its input
            return np.repeat(given, outputs // groups)
        made = self._fresh(outputs)
        if groups > 1:  # every group has to stay as large as the others
            for ids in (given.reshape(groups, -1), made.reshape(groups, -1)):
                for row in ids[1:]:
                    self._tie(ids[0], row)
        return made


@dataclass
class _Reader:
    """One group of a convolution: what it reads, with the statistics that tell what a channel is worth to it."""

    step: int
    group: int
    units: Ints
    """[U] the units that it reads, each once."""
    order: Ints
    """[I/g] positions of the input channels, unit by unit."""
    weight: Tensor
    """[U, outputs, values]: what is multiplied with each unit."""
    precision: Tensor
    """[U, U] inverse covariance of the units; rows of gone ones are zero."""
    mean: Tensor
    """[U]"""
    scale: float
    """Variance of the outputs, were the inputs uncorrelated."""
    shift: Tensor
    """[outputs]: what has to be added to the bias for the units that are gone."""

    def worth(self) -> Tensor:
        """[U] relative error at the outputs if a unit goes and the others take over."""
        return self.weight.square().sum((1, 2)) / self.precision.diagonal().clamp(min=1e-300) / self.scale

    def remove(self, unit: int) -> None:
        """Take a unit out: the others' weights and the bias take over what they can."""
        at = int(np.flatnonzero(self.units == unit)[0])
        row, own = self.precision[at].clone(), float(self.precision[at, at])
        share = -row / own
        share[at] = 0.0
        lost = self.weight[at].clone()
        taps = lost.sum(1)
        self.weight += share[:, None, None] * lost
        self.shift += taps * float(self.mean[at] - share @ self.mean)
        self.precision -= torch.outer(row, row) / own
        self.precision[at], self.precision[:, at], self.weight[at] = 0.0, 0.0, 0.0


class _Narrowing:
    def __init__(self, graph: FloatGraph, calib: Tensor | None) -> None:
        self.graph, self.units = graph, _Units(graph)
        self.lost: set[int] = set()
        values = None
        if calib is not None:
            with torch.no_grad():
                values = graph.run(checked_calibration(graph, calib))
        self.readers = [r for i, s in enumerate(graph.steps) if s.op == "conv" for r in self._readers(i, s, values)]

    def run(self, keep: float) -> FloatGraph:
        price = self._prices()
        left, goal = price.sum(), keep * price.sum()
        free = price > 0
        free[list(self.units.frozen)] = False
        layers = [set(self.units.of[i].tolist()) for i, s in enumerate(self.graph.steps) if s.op == "conv"]
        least = [max(1, math.ceil(_LEAST * keep * len(layer))) for layer in layers]
        reading: dict[int, list[int]] = {}
        for at, reader in enumerate(self.readers):
            for unit in reader.units.tolist():
                reading.setdefault(unit, []).append(at)
        worths = [reader.worth().numpy() for reader in self.readers]
        while left > goal:
            for layer, few in zip(layers, least, strict=True):
                if len(layer - self.lost) <= few:
                    free[list(layer)] = False
            if not free.any():
                break
            total = np.zeros(len(price))
            for reader, worth in zip(self.readers, worths, strict=True):
                total[reader.units] += worth
            unit = int(np.where(free, total / np.maximum(price, 1), np.inf).argmin())
            free[unit] = False
            left -= price[unit]
            self.lost.add(unit)
            for at in reading.get(unit, []):
                self.readers[at].remove(unit)
                worths[at] = self.readers[at].worth().numpy()
        return self._rebuilt()

    def _prices(self) -> NDArray[np.float64]:
        """Lookups that hang on each unit."""
        price = np.zeros(len(self.units.parent))
        for step, ids in zip(self.graph.steps, self.units.of, strict=True):
            area = step.shape[1] * step.shape[2]
            if step.op in ("relu", "sign"):
                np.add.at(price, ids, area)
            elif step.op == "maxpool":
                assert step.window is not None
                np.add.at(price, ids, area * (step.window.taps - 1))
        return price

    def _readers(self, index: int, step: Step, values: list[Tensor] | None) -> list[_Reader]:
        assert step.weight is not None
        given, groups = self.units.of[step.inputs[0]], step.groups
        if groups > 1 and len(given) == groups:
            return []  # depthwise: it goes with its input
        made = []
        for group, ids in enumerate(given.reshape(groups, -1)):
            order = np.argsort(ids, kind="stable")
            units, counts = np.unique(ids, return_counts=True)
            if counts.min() != counts.max():
                self.units.frozen.update(units.tolist())  # read once here and twice there: leave it
                continue
            weight = step.weight[group * (step.shape[0] // groups) : (group + 1) * (step.shape[0] // groups)]
            weight = weight[:, torch.from_numpy(order)]
            weight = weight.reshape(len(weight), len(units), -1).transpose(0, 1).contiguous().clone()
            if values is None:
                mean, cov = torch.zeros(len(units)).double(), torch.eye(len(units)).double()
            else:
                x = values[step.inputs[0]]
                x = x.reshape(len(x), groups, -1, *x.shape[2:])[:, group][:, torch.from_numpy(order)]
                rows = x.reshape(len(x), len(units), -1).transpose(0, 1).flatten(1)
                mean, cov = rows.mean(1), torch.cov(rows, correction=0).reshape(len(units), len(units))
            ridge = max(float(cov.diagonal().mean()) * _RIDGE, 1e-12)
            scale = float((weight.square().sum((1, 2)) * cov.diagonal()).sum()) or 1.0
            precision = torch.linalg.inv(cov + ridge * torch.eye(len(units)).double())
            shift = torch.zeros(weight.shape[1]).double()
            made.append(_Reader(index, group, units, order, weight, precision, mean, scale, shift))
        return made

    def _rebuilt(self) -> FloatGraph:
        kept = [np.array([u not in self.lost for u in ids.tolist()]) for ids in self.units.of]
        weights = {
            i: s.weight.clone() for i, s in enumerate(self.graph.steps) if s.op == "conv" and s.weight is not None
        }
        biases: dict[int, Tensor] = {}
        for r in self.readers:
            step = self.graph.steps[r.step]
            rows = slice(r.group * r.weight.shape[1], (r.group + 1) * r.weight.shape[1])
            part = weights[r.step][rows]
            part[:, torch.from_numpy(r.order)] = r.weight.transpose(0, 1).reshape(part.shape)
            start = torch.zeros(step.shape[0]).double() if step.bias is None else step.bias.clone()
            biases.setdefault(r.step, start)[rows] += r.shift
        steps = []
        for index, step in enumerate(self.graph.steps):
            keep = kept[index]
            mask = torch.from_numpy(keep)
            shape = (int(keep.sum()), *step.shape[1:])
            if step.op == "conv":
                steps.append(self._conv(step, shape, keep, kept[step.inputs[0]], weights[index], biases.get(index)))
            elif step.op in ("scale", "norm"):
                assert step.weight is not None
                assert step.bias is not None
                steps.append(replace(step, shape=shape, weight=step.weight[mask], bias=step.bias[mask]))
            else:
                steps.append(replace(step, shape=shape))
        return replace(self.graph, steps=tuple(steps))

    @staticmethod
    def _conv(
        step: Step,
        shape: tuple[int, int, int],
        out: NDArray[np.bool_],
        given: NDArray[np.bool_],
        w: Tensor,
        b: Tensor | None,
    ) -> Step:
        bias = step.bias if b is None else b
        outputs = torch.from_numpy(out)
        bias = None if bias is None else bias[outputs]
        if step.groups > 1 and len(given) == step.groups:
            return replace(step, shape=shape, weight=w[outputs], bias=bias, groups=int(given.sum()))
        # every group keeps as many inputs, but not always at the same places in its rows of the weight
        inside = torch.from_numpy(given.reshape(step.groups, -1)).repeat_interleave(w.shape[0] // step.groups, 0)
        rows = [row[mask] for row, mask, stays in zip(w, inside, out.tolist(), strict=True) if stays]
        return replace(step, shape=shape, weight=torch.stack(rows), bias=bias)
