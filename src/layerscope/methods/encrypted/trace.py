"""From any nn.Module in evaluation mode to a :class:`FloatGraph`, by symbolic tracing (torch.fx).

Only shapes of known layers are interpreted; everything else becomes an ``opaque`` step that names the module, why it
cannot be held, and the nearest replacement. Nothing of the module is changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerscope.methods.encrypted.errors import UnsupportedModuleError
from layerscope.methods.encrypted.floatgraph import FloatGraph, Step
from layerscope.methods.encrypted.folding import fold, norm_affine
from layerscope.methods.encrypted.functions import FUNCTIONS, IDENTITY, METHODS, MODULES, REMEDIES, Call, pair
from layerscope.methods.encrypted.graph import Shape, Window


def trace(model: nn.Module, in_shape: Sequence[int], *, folded: bool = True) -> FloatGraph:
    """The steps of ``model`` on inputs of shape [N, *in_shape].

    Args:
        model: any module; it must be in evaluation mode, because running statistics become constants.
        in_shape: (channels, height, width), or (features,).
        folded: fold normalization layers into the convolutions beside them.

    Raises:
        UnsupportedModuleError: training mode, control flow that depends on data, or more than one input.
    """
    training = [name or "the network" for name, m in model.named_modules() if m.training]
    if training:
        raise UnsupportedModuleError(
            training[0], "is in training mode, where statistics depend on the batch", "call model.eval() first"
        )
    shape = tuple(int(n) for n in in_shape)
    shape3: Shape = (shape[0], shape[1], shape[2]) if len(shape) == 3 else (math.prod(shape), 1, 1)
    try:
        traced = _Tracer().trace(model)
    except Exception as error:  # fx raises many types; each means that the code depends on the data
        raise UnsupportedModuleError(
            type(model).__name__,
            f"cannot be traced ({str(error).splitlines()[0]})",
            "remove control flow that depends on tensors, or quantise the part that has none",
        ) from error
    graph = _Reader(model, traced, shape, shape3).read()
    return fold(graph) if folded else graph


class _Tracer(fx.Tracer):
    """Opens every module that only combines others; keeps as leaves what holds weights or has no children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See torch.fx."""
        if isinstance(m, nn.Sequential | nn.ModuleList):
            return False
        if norm_affine(m) is not None or type(m).__module__.startswith("torch.nn"):
            return True
        own = [*m.parameters(recurse=False), *m.buffers(recurse=False)]
        return bool(own) or (not list(m.children()) and type(m).__name__ in REMEDIES)


class _Reader(fx.Interpreter):
    """Runs the trace once on zeros for the shapes, and writes down one step per operation."""

    def __init__(self, model: nn.Module, graph: fx.Graph, shape: tuple[int, ...], shape3: Shape) -> None:
        super().__init__(fx.GraphModule(model, graph), garbage_collect_values=False)
        self.shape, self.shape3 = shape, shape3
        self.source_name = type(model).__name__
        self.steps: list[Step] = []
        self.index: dict[fx.Node, int] = {}
        self.calls: dict[str, int] = {}
        self.out: int | None = None

    def read(self) -> FloatGraph:
        parameter = next(iter(self.module.parameters()), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        device = None if parameter is None else parameter.device
        with torch.no_grad():
            self.run(torch.zeros(2, *self.shape, dtype=dtype, device=device))
        assert self.out is not None
        return FloatGraph(tuple(self.steps[: self.out + 1]), self.source_name)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            if self.steps:
                raise UnsupportedModuleError(n.name, "is a second input", "give the network one input tensor")
            self._note(n, Step("input", "input", (), self.shape3, kind="input"))
        elif n.op == "output":
            self._output(n)
        elif isinstance(result, Tensor) and self._sources(n):
            self._read(n, result)
        return result

    def _output(self, n: fx.Node) -> None:
        target = n.args[0]
        if not isinstance(target, fx.Node) or target not in self.index:
            raise UnsupportedModuleError(self.source_name, "does not return one tensor", "return the logits alone")
        self.out = self.index[target]

    def _sources(self, n: fx.Node) -> list[int]:
        return [self.index[m] for m in n.all_input_nodes if m in self.index]

    def _note(self, n: fx.Node, step: Step) -> None:
        self.calls[step.name] = self.calls.get(step.name, 0) + 1
        if self.calls[step.name] > 1:  # the second call of a reused module, as the probe names it
            step = replace(step, name=f"{step.name}#{self.calls[step.name]}")
        self.steps.append(step)
        self.index[n] = len(self.steps) - 1

    def _read(self, n: fx.Node, result: Tensor) -> None:
        sources = tuple(self._sources(n))
        kind, module = str(n.target), None
        if n.op == "call_module":
            name, module = kind, self.fetch_attr(str(n.target))
            kind = type(module).__name__
        else:
            kind = getattr(n.target, "__name__", kind)
            name = f"{_scope(n)}.{kind}" if _scope(n) else kind
        if isinstance(module, IDENTITY):
            self.index[n] = sources[0]
            return
        args, kwargs = self.fetch_args_kwargs_from_env(n) if module is None else ((), {})
        before = tuple(self.steps[i].shape for i in sources)
        call = Call(name, sources, _shape(result), before, args, kwargs)
        if module is not None:
            made = _module_step(module, call)
        else:
            rule = (FUNCTIONS if n.op == "call_function" else METHODS).get(kind)
            made = None if rule is None else rule(call)
        if isinstance(made, str):
            self.index[n] = sources[0]
            return
        self._note(n, made or _opaque(call, kind))


def _opaque(call: Call, kind: str) -> Step:
    nothing = (f"{kind} has no exact integer form here", "use convolutions, linear layers, ReLU, pools and sums")
    reason, remedy = REMEDIES.get(kind, nothing)
    return Step(call.name, "opaque", call.sources, call.shape, kind=kind, reason=reason, remedy=remedy)


def _scope(n: fx.Node) -> str:
    stack = n.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _shape(result: Tensor) -> Shape:
    if result.ndim == 4:
        return (result.shape[1], result.shape[2], result.shape[3])
    return (math.prod(result.shape[1:]), 1, 1)


def _module_step(module: nn.Module, call: Call) -> Step | str | None:
    kind = type(module).__name__
    affine = norm_affine(module)
    if affine is not None:
        return Step(call.name, "norm", call.sources, call.shape, *affine, kind=kind)
    if type(module) is nn.Linear:
        if call.before[0][1:] != (1, 1):
            return None  # a linear layer over tokens
        weight, bias = _constants(module.weight, module.bias)
        return Step(
            call.name, "conv", call.sources, call.shape, weight[:, :, None, None], bias, Window((1, 1)), kind=kind
        )
    if type(module) is nn.Conv2d:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return None
        window = Window(*(pair(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation)))
        weight, bias = _constants(module.weight, module.bias)
        return Step(call.name, "conv", call.sources, call.shape, weight, bias, window, module.groups, kind=kind)
    if kind not in MODULES or not type(module).__module__.startswith("torch.nn"):
        return None
    function, names = MODULES[kind]
    made = FUNCTIONS[function](replace(call, args=(), kwargs={k: getattr(module, k) for k in names}))
    return replace(made, kind=kind) if isinstance(made, Step) else made


def _constants(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.detach().double().cpu(), None if bias is None else bias.detach().double().cpu()
