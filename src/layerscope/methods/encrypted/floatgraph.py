"""The float network as a flat list of steps: what the quantiser, the trainer and the cost model all read.

Values are [N, C, H, W] throughout; a vector is [N, F, 1, 1] and a linear layer a 1 x 1 convolution, so that six
operations are enough. ``opaque`` steps stand for what an integer network cannot hold; they keep a shape and a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.methods.encrypted.errors import UnsupportedModuleError
from layerscope.methods.encrypted.graph import Shape, Window

StepOp = Literal[
    "input", "conv", "norm", "scale", "relu", "sign", "maxpool", "avgpool", "add", "concat", "flatten", "opaque"
]


@dataclass(frozen=True)
class Step:
    """One float operation; only the fields of its ``op`` are set."""

    name: str
    op: StepOp
    inputs: tuple[int, ...]
    shape: Shape
    weight: Tensor | None = None
    """conv [O, I/g, kh, kw]; norm and scale [C]: the factor. float64."""
    bias: Tensor | None = None
    """conv [O]; norm and scale [C]: the summand. float64."""
    window: Window | None = None
    groups: int = 1
    cap: float | None = None
    """relu: the clip (6 for ReLU6)."""
    kind: str = ""
    """Class or function name, for reports."""
    reason: str = ""
    """opaque: why an integer network cannot hold it."""
    remedy: str = ""


@dataclass(frozen=True)
class FloatGraph:
    """Steps in execution order; the last one is the answer."""

    steps: tuple[Step, ...]
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def in_shape(self) -> Shape:
        """Shape of one sample."""
        return self.steps[0].shape

    def consumers(self, index: int) -> list[int]:
        """Steps that read step ``index``."""
        return [i for i, s in enumerate(self.steps) if index in s.inputs]

    def require_supported(self) -> None:
        """Raise for the first step that an integer network cannot hold."""
        for step in self.steps:
            if step.op == "opaque":
                raise UnsupportedModuleError(step.name, step.reason, step.remedy)

    def run(self, x: Tensor) -> list[Tensor]:
        """Every step's output on a batch [N, C, H, W], in the dtype of ``x``."""
        values: list[Tensor] = []
        for step in self.steps:
            values.append(x.reshape(-1, *step.shape) if step.op == "input" else evaluate(step, values))
        return values


def evaluate(step: Step, values: list[Tensor]) -> Tensor:
    """One float step on the values before it."""
    inputs = [values[i] for i in step.inputs]
    x = inputs[0]
    window = step.window
    match step.op:
        case "conv":
            assert step.weight is not None
            assert window is not None
            bias = None if step.bias is None else step.bias.to(x.dtype)
            return F.conv2d(
                x, step.weight.to(x.dtype), bias, window.stride, window.padding, window.dilation, step.groups
            )
        case "norm" | "scale":
            assert step.weight is not None
            assert step.bias is not None
            return x * step.weight.to(x.dtype).view(-1, 1, 1) + step.bias.to(x.dtype).view(-1, 1, 1)
        case "relu":
            return x.clamp(min=0, max=step.cap)
        case "sign":
            return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        case "maxpool":
            assert window is not None
            return F.max_pool2d(x, window.kernel, window.stride, window.padding, window.dilation)
        case "avgpool":
            assert window is not None
            return F.avg_pool2d(x, window.kernel, window.stride, window.padding)
        case "add":
            return x + inputs[1]
        case "concat":
            return torch.cat(inputs, 1)
        case "flatten":
            return x.reshape(x.shape[0], -1, 1, 1)
    raise UnsupportedModuleError(step.name, step.reason, step.remedy)


def without(graph: FloatGraph, index: int, into: int) -> FloatGraph:
    """The graph less step ``index``, whose readers read ``into`` instead."""
    steps = []
    for i, step in enumerate(graph.steps):
        if i == index:
            continue
        inputs = tuple(into if j == index else j for j in step.inputs)
        steps.append(replace(step, inputs=tuple(j - (j > index) for j in inputs)))
    return replace(graph, steps=tuple(steps))
