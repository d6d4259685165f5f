"""Functions and methods of torch as operations on rows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from layerscope.methods.focus.levels import Geometry
from layerscope.methods.focus.ops import (
    Act,
    Add,
    Affine,
    Concat,
    Context,
    Conv,
    GlobalMean,
    Op,
    Permute,
    Pool,
    Same,
    ScaleBy,
    Times,
    Unsupported,
)
from layerscope.methods.focus.read_channels import CHANNEL_FUNCTIONS, CHANNEL_METHODS, shuffle
from layerscope.methods.focus.reading import (
    argument,
    first_argument,
    mean_pool,
    name_of,
    need_channels,
    norm_over,
    pair,
    pair_or_none,
    pool_geometry,
)


def _act(kind: str | None, function: Callable[..., Tensor]) -> Callable[[fx.Node, Context], Op]:
    def read(node: fx.Node, context: Context) -> Op:
        name = kind if kind != "gelu" or argument(node, 1, "approximate", "none") == "none" else None
        keywords = {k: v for k, v in node.kwargs.items() if k not in ("input", "inplace")}
        rest = tuple(a for a in node.args[1:] if not isinstance(a, bool))
        return Op(Act(name, lambda x: function(x, *rest, **keywords)), (first_argument(node),))

    return read


def _same_grid(a: fx.Node, b: fx.Node, context: Context) -> bool:
    """Whether both are rows of one grid, with their channels on the same axis."""
    last = context.channels_last
    if a not in last or b not in last or last[a] != last[b]:
        return False
    grids = [context.shapes[n][1:3] if last[n] else context.shapes[n][2:] for n in (a, b)]
    return grids[0] == grids[1]


def _add(node: fx.Node, context: Context) -> Op:
    a, b = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if node.kwargs.get("alpha", 1) != 1:
        raise Unsupported("add with alpha")
    if (op := _with_number(node, a, b)) is not None:
        return op
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        raise Unsupported("adding something that is neither rows nor a number")
    if _same_grid(a, b, context):
        if context.shapes[a] != context.shapes[b]:
            raise Unsupported("adding values of different shapes")
        return Op(Add(), (a, b))
    raise Unsupported("adding rows to a dense value")


def _with_number(node: fx.Node, a: Any, b: Any) -> Op | None:
    """``rows (op) number`` or ``number (op) rows``: the same function of each value."""
    if node.kwargs.keys() - {"other"}:
        return None
    target = node.target
    function: Callable[..., Tensor] = (
        getattr(torch.Tensor, target.rstrip("_")) if isinstance(target, str) else _NOT_IN_PLACE.get(target, target)
    )
    if isinstance(a, fx.Node) and isinstance(b, int | float):
        return Op(Act(None, lambda x: function(x, b)), (a,))
    if isinstance(b, fx.Node) and isinstance(a, int | float):
        return Op(Act(None, lambda x: function(a, x)), (b,))
    return None


_NOT_IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip


def _number_only(node: fx.Node, context: Context) -> Op:
    a, b = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if (op := _with_number(node, a, b)) is None:
        raise Unsupported(f"{name_of(node.target)} of two tensors")
    return op


def _mul(node: fx.Node, context: Context) -> Op:
    a, b = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if (op := _with_number(node, a, b)) is not None:
        return op
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and _same_grid(a, b, context):
        return Op(Times(), (a, b))
    for position, (rows, other) in enumerate(((b, a), (a, b))):
        if not isinstance(rows, fx.Node) or rows not in context.channels_last:
            continue
        channels = context.shapes[rows][-1 if context.channels_last[rows] else 1]
        if isinstance(other, fx.Node) and other in context.constants:
            scale = context.constants[other].detach()
            ok = scale.shape == (channels,) if context.channels_last[rows] else scale.shape[-3:] == (channels, 1, 1)
            if ok and scale.numel() == channels:
                return Op(Affine(scale.reshape(-1), torch.zeros_like(scale).reshape(-1)), (rows,))
        elif isinstance(other, fx.Node):
            shape = context.shapes.get(other, ())
            if len(shape) == 4 and shape[1:] == (channels, 1, 1) and not context.channels_last[rows]:
                note = f"{node.name}: squeeze-and-excitation averages over the fill, so the fill changes every channel"
                return Op(ScaleBy(position), (rows,), (note,))
    raise Unsupported("product that is not a scale per channel")


def _cat(node: fx.Node, context: Context) -> Op:
    values, axis = node.args[0], argument(node, 1, "dim", 0)
    if not isinstance(values, list | tuple) or not all(isinstance(v, fx.Node) for v in values):
        raise Unsupported("concatenation of something that is not a list of tensors")
    nodes = tuple(v for v in values if isinstance(v, fx.Node))
    if any(v not in context.channels_last for v in nodes):
        raise Unsupported("concatenating rows with a dense value")
    last = {context.channels_last[v] for v in nodes}
    if len(last) != 1 or axis not in ((3, -1) if last.pop() else (1, -3)):
        raise Unsupported("concatenation along another axis than channels")
    return Op(Concat(), nodes)


def _functional_conv(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=False)
    weight, bias = argument(node, 1, "weight", None), argument(node, 2, "bias", None)
    if weight not in context.constants or (bias is not None and bias not in context.constants):
        raise Unsupported("convolution with computed weights")
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        raise Unsupported(f"functional convolution with padding {padding!r}")
    w = context.constants[weight].detach()
    b = w.new_zeros(w.shape[0]) if bias is None else context.constants[bias].detach()
    stride, dilation = pair(argument(node, 3, "stride", 1)), pair(argument(node, 5, "dilation", 1))
    geometry = Geometry(pair(w.shape[2:]), stride, pair(padding), dilation)
    return Op(Conv(w, b, geometry, int(argument(node, 6, "groups", 1))), (first_argument(node),))


def _functional_avg_pool(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=False)
    defaults = {
        "kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True,
        "divisor_override": None,
    }  # fmt: skip
    given = [argument(node, i + 1, name, default) for i, (name, default) in enumerate(defaults.items())]
    return Op(mean_pool(*given), (first_argument(node),))


def _functional_norm(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=True)

    def constant(position: int, name: str) -> Tensor | None:
        value = argument(node, position, name, None)
        if value is None:
            return None
        if not isinstance(value, fx.Node) or value not in context.constants:
            raise Unsupported("LayerNorm with a computed weight")
        return context.constants[value]

    shape = argument(node, 1, "normalized_shape", ())
    kind = norm_over(tuple(shape), constant(2, "weight"), constant(3, "bias"), argument(node, 4, "eps", 1e-5))
    return Op(kind, (first_argument(node),))


def _functional_batch_norm(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=False)
    names = ("running_mean", "running_var", "weight", "bias")
    values = [argument(node, i + 1, name, None) for i, name in enumerate(names)]
    if argument(node, 5, "training", False) is not False:
        raise Unsupported("batch_norm in training mode")
    tensors = [context.constants.get(v) if isinstance(v, fx.Node) else None for v in values]
    mean, var, weight, bias = tensors
    if mean is None or var is None:
        raise Unsupported("BatchNorm without running statistics normalises with the batch itself")
    scale = (var + argument(node, 7, "eps", 1e-5)).rsqrt()
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean * scale
    return Op(Affine(scale, shift if bias is None else shift + bias.detach()), (first_argument(node),))


def _permute(node: fx.Node, context: Context) -> Op:
    if len(context.shapes.get(node, ())) == 5:
        return shuffle(node, context)
    order = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else node.kwargs.get("dims")
    if order is None or not isinstance(order, list | tuple):
        raise Unsupported("permute without a fixed order")
    source, fixed = first_argument(node), tuple(o % 4 for o in order if isinstance(o, int))
    last = context.channels_last.get(source, False)
    if fixed == (0, 2, 3, 1) and not last:
        return Op(Permute(to_last=True), (source,))
    if fixed == (0, 3, 1, 2) and last:
        return Op(Permute(to_last=False), (source,))
    raise Unsupported(f"permute to {fixed}")


def _mean(node: fx.Node, context: Context) -> Op:
    axes = argument(node, 1, "dim", None)
    source = first_argument(node)
    listed = sorted(a % 4 for a in axes) if isinstance(axes, list | tuple) else None
    if listed != ([1, 2] if context.channels_last.get(source, False) else [2, 3]):
        raise Unsupported("mean over other axes than the grid")
    if context.channels_last.get(source, False):
        raise Unsupported("mean over the grid with channels last")
    return Op(GlobalMean(keepdim=bool(argument(node, 2, "keepdim", False))), (source,))


def _functional_adaptive(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=False)
    if pair_or_none(argument(node, 1, "output_size", None)) != (1, 1):
        raise Unsupported("adaptive pooling to another size than 1 needs the whole map")
    return Op(GlobalMean(keepdim=True), (first_argument(node),))


def _functional_max_pool(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=False)
    kernel = argument(node, 1, "kernel_size", None)
    stride = argument(node, 2, "stride", None) or kernel
    padding, dilation = argument(node, 3, "padding", 0), argument(node, 4, "dilation", 1)
    if argument(node, 6, "return_indices", False):
        raise Unsupported("max pooling that returns indices")
    ceil_mode = bool(argument(node, 5, "ceil_mode", False))
    return Op(Pool(pool_geometry(kernel, stride, padding, dilation, ceil_mode)), (first_argument(node),))


def _keep(node: fx.Node, context: Context) -> Op:
    if node.target is F.dropout and argument(node, 2, "training", True) is not False:
        raise Unsupported("dropout that is on")
    return Op(Same(), (first_argument(node),))


def stochastic_depth(node: fx.Node, context: Context) -> Op:
    """Torchvision's stochastic depth, which is nothing when it is off."""
    if argument(node, 3, "training", True) is not False:
        raise Unsupported("stochastic depth that is on")
    return Op(Same(), (first_argument(node),))


FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op]] = {
    F.conv2d: _functional_conv,
    torch.conv2d: _functional_conv,
    F.relu: _act("relu", F.relu),
    torch.relu: _act("relu", torch.relu),
    F.relu6: _act("relu6", F.relu6),
    F.silu: _act("silu", F.silu),
    F.gelu: _act("gelu", F.gelu),
    F.hardswish: _act("hardswish", F.hardswish),
    F.leaky_relu: _act(None, F.leaky_relu),
    torch.sigmoid: _act(None, torch.sigmoid),
    torch.tanh: _act(None, torch.tanh),
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    torch.cat: _cat,
    torch.concat: _cat,
    F.layer_norm: _functional_norm,
    F.batch_norm: _functional_batch_norm,
    torch.permute: _permute,
    torch.mean: _mean,
    F.adaptive_avg_pool2d: _functional_adaptive,
    F.max_pool2d: _functional_max_pool,
    F.avg_pool2d: _functional_avg_pool,
    F.dropout: _keep,
    F.hardsigmoid: _act(None, F.hardsigmoid),
    F.elu: _act(None, F.elu),
    F.celu: _act(None, F.celu),
    F.selu: _act(None, F.selu),
    F.mish: _act(None, F.mish),
    F.softplus: _act(None, F.softplus),
    F.hardtanh: _act(None, F.hardtanh),
    F.sigmoid: _act(None, torch.sigmoid),
    F.tanh: _act(None, torch.tanh),
    torch.clamp: _act(None, torch.clamp),
    operator.sub: _number_only,
    operator.isub: _number_only,
    operator.truediv: _number_only,
    operator.itruediv: _number_only,
    torch.sub: _number_only,
    torch.div: _number_only,
    **CHANNEL_FUNCTIONS,
}


METHODS: dict[Any, Callable[[fx.Node, Context], Op]] = {
    "relu": _act("relu", torch.relu),
    "relu_": _act("relu", torch.relu),
    "sigmoid": _act(None, torch.sigmoid),
    "tanh": _act(None, torch.tanh),
    "add": _add,
    "add_": _add,
    "mul": _mul,
    "mul_": _mul,
    "permute": _permute,
    "mean": _mean,
    "clone": _keep,
    "clamp": _act(None, torch.clamp),
    "sub": _number_only,
    "div": _number_only,
    **CHANNEL_METHODS,
}
