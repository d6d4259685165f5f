"""Trace a network with torch.fx and find where it can be cut: places that all later work passes through."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerscope.errors import did_you_mean
from layerscope.methods.focus.errors import FocusError, FocusTypeError
from layerscope.methods.focus.ops import Act, Affine, Context, Norm, Permute, Pool, Same, Unsupported
from layerscope.methods.focus.recognise import recognise, zeros_around

#: Activations whose output is never negative, and those that dip slightly below zero.
_NON_NEGATIVE, _NEARLY = ("relu", "relu6"), ("silu", "gelu", "hardswish")
_IN_PLACE = {operator.iadd, operator.imul}


@dataclass(frozen=True, eq=False)
class Cut:
    """A node whose one tensor is all that later work depends on."""

    node: fx.Node
    name: str
    """Module path, or the node's name for a function."""
    channels: int
    grid: tuple[int, int]
    brightness: str
    """``yes`` after a non-negative activation, ``nearly`` after SiLU, GELU or Hardswish, ``no`` elsewhere: there the
    sum over channels means nothing."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A network as a graph, with the shapes that one example gave."""

    module: fx.GraphModule
    context: Context
    cuts: tuple[Cut, ...]

    def cut(self, name: str) -> Cut:
        """The cut of this name.

        Raises:
            FocusError: no such cut; the message lists the near ones.
        """
        for cut in self.cuts:
            if name in (cut.name, cut.node.name):
                return cut
        raise FocusError(f"cut: no cut point {name!r}: {did_you_mean(name, [c.name for c in self.cuts])}")


def trace(model: nn.Module, example: Tensor) -> Traced:
    """Trace ``model`` and run ``example`` through it once for the shapes.

    Raises:
        FocusTypeError: not a module, or an example that is not a float32 tensor.
        FocusError: training mode, no Conv2d, an example that is not [N, C, H, W], or a network torch.fx cannot trace.
    """
    check_model(model)
    check_input(example)
    try:
        tracer = _Tracer()
        module = fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:
        raise FocusError(f"model: torch.fx cannot trace it ({_where(error)}): {error}") from error
    _drop_asserts(module)
    _functionalize(module)
    _localize_sizes(module)
    module.graph.eliminate_dead_code()
    fold_constants(module)
    shapes = _Shapes(module)
    with torch.no_grad():
        try:
            shapes.run(example)
        except Exception as error:
            raise FocusError(f"example: the model does not run on shape {tuple(example.shape)}: {error}") from error
    constants = {n: _attribute(module, str(n.target)) for n in module.graph.nodes if n.op == "get_attr"}
    context = Context(dict(module.named_modules()), shapes.found, {}, constants, shapes.plain, tracer.whole)
    return Traced(module, context, _cuts(module, context))


def check_model(model: nn.Module) -> None:
    """Raise unless ``model`` is a module in eval mode that holds a Conv2d."""
    if not isinstance(model, nn.Module):
        raise FocusTypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise FocusError(f"model: {training!r} is in training mode; call model.eval() first")
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        raise FocusError("model: it holds no Conv2d, so there is nothing to focus")


def check_input(x: Tensor) -> None:
    """Raise unless ``x`` is a floating-point tensor [N, C, H, W]."""
    if not isinstance(x, Tensor):
        raise FocusTypeError(f"x: expected a tensor [N, C, H, W], got {type(x).__name__}")
    if x.ndim != 4:
        raise FocusError(f"x: expected 4 axes [N, C, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise FocusTypeError(f"x: expected floating point, got {x.dtype}")


class _Tracer(fx.Tracer):
    """torch.fx's tracer; a submodule that it cannot trace stays whole and runs densely."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: dict[str, str] = {}
        """Submodules that stayed whole, with the reason."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # whatever its Python does with a value that is not there yet
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.module_stack = stack  # the failed attempt left its entries behind
            path = self.path_of_module(m)
            self.whole[path] = f"its Python cannot be traced ({_where(error)})"
            return self.create_proxy("call_module", path, args, kwargs)


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}
        self.plain: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        elif _is_plain(value):
            self.plain[n] = value
        return value


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, int | float | bool | str | torch.dtype | torch.device)


def fold_constants(module: fx.GraphModule) -> None:
    """Replace what depends on parameters alone (standardised weights, reshaped scales) by its value."""
    values: dict[fx.Node, Tensor] = {}
    random = {"dropout", "rand", "randn", "rand_like", "randn_like", "bernoulli"}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(module, str(node.target))
        elif (
            node.op in ("call_function", "call_method")
            and node.all_input_nodes
            and all(n in values for n in node.all_input_nodes)
            and getattr(node.target, "__name__", node.target) not in random
        ):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n].clone())
            with torch.no_grad():
                found = node.target(*args, **kwargs) if callable(node.target) else getattr(args[0], node.target)(
                    *args[1:], **kwargs
                )  # fmt: skip
            if not isinstance(found, Tensor):
                continue
            name = f"constant_{node.name}"
            module.register_buffer(name, found, persistent=False)
            with module.graph.inserting_before(node):
                folded = module.graph.get_attr(name)
            node.replace_all_uses_with(folded)
            values[folded] = found
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def _drop_asserts(module: fx.GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_function" and node.target is torch._assert and not node.users:
            module.graph.erase_node(node)


def _functionalize(module: fx.GraphModule) -> None:
    """Let everything after an in-place operation read its result, as it would in memory."""
    modules = dict(module.named_modules())
    nodes = list(module.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        in_place = (
            (node.op == "call_module" and getattr(modules[str(node.target)], "inplace", False))
            or (node.op == "call_function" and (node.target in _IN_PLACE or node.kwargs.get("inplace")))
            or (node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).startswith("__"))
        )
        source = node.args[0] if node.args else None
        if in_place and isinstance(source, fx.Node):
            for user in list(source.users):
                if order.get(user, -1) > order[node]:
                    user.replace_input_with(source, node)


def _localize_sizes(module: fx.GraphModule) -> None:
    """Ask a tensor for its size as soon as it is there, so that it need not live on for that alone; and let
    ``x.view(inputs.size(0), -1)`` ask x itself.
    """
    for node in list(module.graph.nodes):
        asks = (node.op == "call_method" and node.target == "size") or (
            node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)
        )
        if asks and isinstance(node.args[0], fx.Node):
            node.args[0].append(node)
    for node in list(module.graph.nodes):
        if node.op != "call_method" or node.target != "size" or node.args[1:] != (0,):
            continue
        for user in list(node.users):
            own = user.args[0] if user.args else None
            if isinstance(own, fx.Node) and own is not node and user.target in ("view", "reshape"):
                with module.graph.inserting_before(user):
                    local = module.graph.call_method("size", (own, 0))
                user.replace_input_with(node, local)


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/fx/" not in f.filename and "/torch/nn/" not in f.filename]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}, line {frame.lineno}: {frame.line}"


def _cuts(module: fx.GraphModule, context: Context) -> tuple[Cut, ...]:
    nodes = list(module.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    last = {node: max((order[u] for u in node.users), default=order[node]) for node in nodes}
    cuts: list[Cut] = []
    live: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        if node.op not in ("get_attr", "output") and node not in context.plain:
            live.add(node)
        live = {n for n in live if last[n] > i}
        shape = context.shapes.get(node, ())
        if live != {node} or len(shape) != 4 or node.op == "placeholder" or min(shape[2:]) < 2:
            continue
        if _belongs_to_next(node, context) or zeros_around(node, context) is not None:
            continue
        name = str(node.target) if node.op == "call_module" else node.name
        if any(cut.name == name for cut in cuts):  # a module that is called twice
            name = node.name
        cuts.append(Cut(node, name, shape[1], (shape[2], shape[3]), _brightness(node, context)))
    return tuple(cuts)


def _belongs_to_next(node: fx.Node, context: Context) -> bool:
    """Whether the only user finishes this value (BatchNorm, activation, change of axes): the cut comes after it."""
    if len(node.users) != 1:
        return False
    user = next(iter(node.users))
    try:
        kind = recognise(user, replace(context, channels_last={})).kind
    except Unsupported:
        return False
    return isinstance(kind, Affine | Act | Same | Permute | Norm)


def _brightness(node: fx.Node, context: Context) -> str:
    """Look back through operations that keep values non-negative to the activation."""
    probe = replace(context, channels_last={})
    while True:
        try:
            op = recognise(node, probe)
        except Unsupported:
            return "no"
        if isinstance(op.kind, Act):
            return "yes" if op.kind.kind in _NON_NEGATIVE else "nearly" if op.kind.kind in _NEARLY else "no"
        if not isinstance(op.kind, Pool | Same):
            return "no"
        node = op.rows[0]
