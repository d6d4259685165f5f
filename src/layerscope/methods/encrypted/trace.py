"""From any nn.Module in evaluation mode to a :class:`FloatGraph`: one forward pass, watched call by call.

Layers of torch are read whole, every other module is opened, whatever it is called: what counts is what it computes.
Only known operations are interpreted; any other becomes an ``opaque`` step that names the module, why it cannot be
held, and the nearest replacement. The steps are then run against the network itself, so that nothing is misread in
silence. Nothing of the module is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layerscope.errors import LayerscopeError
from layerscope.methods.encrypted.errors import QuantizationError, UnsupportedModuleError
from layerscope.methods.encrypted.floatgraph import FloatGraph, Step
from layerscope.methods.encrypted.folding import fold, norm_affine
from layerscope.methods.encrypted.functions import FUNCTIONS, IDENTITY, MODULES, REMEDIES, SOURCE, Call, pair
from layerscope.methods.encrypted.graph import Shape

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: Samples of the pass that is watched.
_BATCH = 2
#: Turning a tensor into a Python value: where code begins to depend on the data.
_READS = ("__bool__", "item", "tolist", "numpy", "__int__", "__float__", "__index__", "equal", "allclose")


def trace(model: nn.Module, in_shape: Sequence[int], *, folded: bool = True) -> FloatGraph:
    """The steps of ``model`` on inputs of shape [N, *in_shape].

    Args:
        model: any module; it must be in evaluation mode, because running statistics become constants.
        in_shape: (channels, height, width), or (features,).
        folded: fold normalization layers into the convolutions beside them.

    Raises:
        QuantizationError: weights or biases that are not finite.
        UnsupportedModuleError: training mode, control flow that depends on data, more than one input or output, or a
            network that does not run on this shape.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModuleError(
            "the network", f"is no torch.nn.Module but {type(model).__name__}", "build it first"
        )
    training = [name or "the network" for name, m in model.named_modules() if m.training]
    if training:
        raise UnsupportedModuleError(
            training[0], "is in training mode, where statistics depend on the batch", "call model.eval() first"
        )
    shape = tuple(int(n) for n in in_shape)
    if not shape or min(shape) < 1:
        raise UnsupportedModuleError("input", f"has the shape {shape}", "give (channels, height, width)")
    parameter = next(model.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(_BATCH, *shape, generator=generator).to(parameter.device, parameter.dtype)
    reader = _Reader(model, shape)
    try:
        with torch.no_grad(), reader.watching():
            out = reader.begin(x)
    except LayerscopeError:
        raise
    except Exception as error:  # the network's own code may raise anything
        raise UnsupportedModuleError(
            reader.place or type(model).__name__,
            f"cannot be traced on inputs of shape {shape} ({str(error).splitlines()[0] if str(error) else error!r})",
            "check in_shape, give the network one input tensor, or quantise the part that runs",
        ) from error
    graph = reader.graph(out)
    for step in graph.steps:
        for what, values in (("weight", step.weight), ("bias", step.bias)):
            if step.op == "conv" and values is not None and not bool(torch.isfinite(values).all()):
                raise QuantizationError(
                    f"{step.name}: its {what} holds NaN or infinity; train or load it again before quantising"
                )
    _check(graph, x, out)
    return fold(graph) if folded else graph


def _check(graph: FloatGraph, x: Tensor, out: Tensor) -> None:
    """Hold the steps against the network; a sign may flip on rounding noise and is left out."""
    if any(step.op in ("opaque", "sign") for step in graph.steps) or not bool(torch.isfinite(out).all()):
        return
    again = graph.run(x.detach().double().cpu())[-1].reshape(out.shape)
    error = (again - out.detach().double().cpu()).abs().max()
    # the network's own rounding, several layers of it
    share = max(2e-3, 16 * torch.finfo(out.dtype).eps) if out.is_floating_point() else 2e-3
    if float(error) > share * float(out.abs().max()) + 1e-6:
        raise UnsupportedModuleError(
            graph.source,
            f"computes something else than its layers say (they differ by {float(error):.2g})",
            "avoid in-place operations on views and modules that are replaced while running",
        )


class _Reader(TorchFunctionMode):
    """Writes down one step for every operation on a tensor that depends on the input."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.source = model, type(model).__name__
        self.shape: Shape = (shape[0], shape[1], shape[2]) if len(shape) == 3 else (math.prod(shape), 1, 1)
        self.steps: list[Step] = []
        self.index: dict[int, int] = {}
        self.alive: list[Tensor] = []  # a tensor that is gone could lend its id to another
        self.calls: dict[str, int] = {}
        self.path: list[str] = []
        self.inside = 0
        self.place = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """With hooks on every module, so that each operation knows where it stands."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, x: Tensor) -> Tensor:
        """Run the network."""
        self._note(Step("input", "input", (), self.shape, kind="input"), x)
        with self:
            out = self.model(x)
        if not isinstance(out, Tensor) or id(out) not in self.index:
            raise UnsupportedModuleError(self.source, "does not return one tensor", "return the logits alone")
        return out

    def graph(self, out: Tensor) -> FloatGraph:
        """The steps up to the answer."""
        last = self.index[id(out)]
        return FloatGraph(tuple(self.steps[: last + 1]), self.source)

    # modules

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self.path.append(name)
            self.place = name or self.place
            self.inside += _is_leaf(module)

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self.path.pop()
            if not _is_leaf(module):
                return
            self.inside -= 1
            sources = self._sources((args, kwargs))
            if not self.inside and sources:
                place = name or type(module).__name__
                self._result(sources, out, lambda call: _module_step(module, call), place, type(module).__name__)

        return leave

    # functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See torch.overrides."""
        kwargs = kwargs or {}
        kind = getattr(func, "__name__", str(func))
        sources = [] if self.inside else self._sources((args, kwargs))
        if sources and kind in _READS:
            raise UnsupportedModuleError(
                self.path[-1] if self.path and self.path[-1] else self.source,
                f"cannot be traced: its code reads a value ({kind}), so what it does depends on the data",
                "remove control flow that depends on tensors, or quantise the part that has none",
            )
        result = func(*args, **kwargs)
        if sources:
            kind = kind.strip("_")
            rule = FUNCTIONS.get(kind)
            scope = self.path[-1] if self.path else ""
            name = f"{scope}.{kind}" if scope else kind

            given = tuple(SOURCE if isinstance(v, Tensor) and id(v) in self.index else v for v in args)
            named = {k: SOURCE if isinstance(v, Tensor) and id(v) in self.index else v for k, v in kwargs.items()}

            def made(call: Call) -> Step | str | None:
                return None if rule is None else rule(replace(call, args=given, kwargs=named))

            self._result(sources, result, made, name, kind)
        return result

    def _result(
        self, sources: list[int], out: Any, make: Callable[[Call], Step | str | None], name: str, kind: str
    ) -> None:
        tensors = [out] if isinstance(out, Tensor) else [t for t in _flat(out) if isinstance(t, Tensor)]
        for part, tensor in enumerate(tensors):
            before = tuple(self.steps[i].shape for i in sources)
            call = Call(name, tuple(sources), _shape(tensor), before, part=part)
            made = make(call)
            if made != "identity" and (tensor.ndim not in (2, 4) or tensor.shape[0] != _BATCH):
                made = None  # neither a map nor one vector a sample: tokens
            if made == "identity":
                self.index[id(tensor)] = sources[0]
                self.alive.append(tensor)
            else:
                self._note(made if isinstance(made, Step) else _opaque(call, kind), tensor)

    def _sources(self, values: Any) -> list[int]:
        return [self.index[id(t)] for t in _flat(values) if isinstance(t, Tensor) and id(t) in self.index]

    def _note(self, step: Step, tensor: Tensor) -> None:
        self.calls[step.name] = self.calls.get(step.name, 0) + 1
        if self.calls[step.name] > 1:  # the second call of a reused module, as the probe names it
            step = replace(step, name=f"{step.name}#{self.calls[step.name]}")
        self.steps.append(step)
        self.index[id(tensor)] = len(self.steps) - 1
        self.alive.append(tensor)


def _is_leaf(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__.startswith("torch.nn.modules"):
        return not issubclass(kind, _CONTAINERS)
    return kind.__name__ in REMEDIES and next(module.children(), None) is None and not list(module.parameters())


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Mapping):
        yield from _flat(list(value.values()))
    else:
        yield value


def _opaque(call: Call, kind: str) -> Step:
    nothing = (f"{kind} has no exact integer form here", "use convolutions, linear layers, ReLU, pools and sums")
    if kind == "square" or (kind == "mul" and len(call.sources) == 2 and call.sources[0] == call.sources[1]):
        kind = "Square"
    reason, remedy = REMEDIES.get(kind, nothing)
    return Step(call.name, "opaque", call.sources, call.shape, kind=kind, reason=reason, remedy=remedy)


def _shape(result: Tensor) -> Shape:
    if result.ndim == 4:
        return (result.shape[1], result.shape[2], result.shape[3])
    return (math.prod(result.shape[1:]), 1, 1)


def _module_step(module: nn.Module, call: Call) -> Step | str | None:
    kind = type(module).__name__
    if isinstance(module, IDENTITY):
        return "identity"
    affine = norm_affine(module)
    if affine is not None:
        return Step(call.name, "norm", call.sources[:1], call.shape, *affine, kind=kind)
    if type(module) in (nn.Linear, nn.Conv2d):
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros" and (isinstance(module.padding, str) or any(pair(module.padding))):
                return None
            places = (module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)
            made = FUNCTIONS["conv2d"](replace(call, args=(SOURCE, *places)))
        else:
            made = FUNCTIONS["linear"](replace(call, args=(SOURCE, module.weight, module.bias)))
        return replace(made, kind=kind) if isinstance(made, Step) else made
    if kind not in MODULES:
        return None
    function, names = MODULES[kind]
    made = FUNCTIONS[function](replace(call, args=(), kwargs={k: getattr(module, k) for k in names}))
    return replace(made, kind=kind) if isinstance(made, Step) else made
