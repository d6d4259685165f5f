"""BatchNorm becomes part of its neighbours: no multiplication is left to do under encryption.

At inference a batch norm is the constant map  y = a x + d,  a = gamma / sqrt(var + eps),  d = beta - mu a.

* Right after a convolution or linear layer that nothing else reads: folded backwards, W' = a W, b' = a b + d.
* Anywhere else: kept as a ``scale`` step. The integer network holds it as metadata (what a code stands for), and the
  next convolution takes it into its own weights; padded taps stay zero, so the border gets its own bias. Where no
  convolution follows (a ReLU or a sum of two scales), lowering refuses it by name.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.methods.encrypted.errors import UnsupportedModuleError
from layerscope.methods.encrypted.floatgraph import FloatGraph, without


def norm_affine(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(a, d) of one of torch's batch norms with running statistics, in float64; None for any other module.

    Classes that inherit from a batch norm often hold an activation too and are not taken for one.
    """
    if not isinstance(module, _BatchNorm) or not type(module).__module__.startswith("torch.nn.modules"):
        return None
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        return None
    a = 1 / torch.sqrt(var.detach().double() + module.eps)
    d = torch.zeros_like(a)
    if module.affine:
        a, d = a * module.weight.detach().double(), module.bias.detach().double()
    return a.cpu(), (d - mean.detach().double() * a).cpu()


def fold(graph: FloatGraph) -> FloatGraph:
    """Every norm folded backwards where that is exact, the others as ``scale`` steps.

    Raises:
        UnsupportedModuleError: a norm whose constants are not finite.
    """
    index = 0
    while index < len(graph.steps):
        step = graph.steps[index]
        if step.op != "norm":
            index += 1
            continue
        a, d = step.weight, step.bias
        assert a is not None
        assert d is not None
        if not bool(torch.isfinite(a).all() and torch.isfinite(d).all()):
            raise UnsupportedModuleError(
                step.name, "has non-finite running statistics", "train it, or calibrate it on data, before quantising"
            )
        source = step.inputs[0]
        before = graph.steps[source]
        steps = list(graph.steps)
        if before.op == "conv" and graph.consumers(source) == [index]:
            assert before.weight is not None
            bias = torch.zeros_like(a) if before.bias is None else before.bias
            steps[source] = replace(before, weight=before.weight * a.view(-1, 1, 1, 1), bias=bias * a + d)
            graph = without(replace(graph, steps=tuple(steps)), index, source)
        else:
            steps[index] = replace(step, op="scale")
            graph = replace(graph, steps=tuple(steps))
    return graph
