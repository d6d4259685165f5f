"""What each operation of a traced network is to a set of active rows: the propagation table, as code.

``recognise`` reads one torch.fx node and returns an :class:`Op`, or raises :class:`Unsupported` with the reason; an
unsupported operation is no error, it only ends the region that runs on rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from layerscope.methods.focus.levels import Geometry


class Unsupported(Exception):
    """This operation cannot run on rows; the message says why."""


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution, Linear over channels, or (``groups == channels``, one tap) a scale and shift per channel."""

    weight: Tensor
    bias: Tensor
    geometry: Geometry
    groups: int = 1
    activation: str = "none"

    @property
    def is_depthwise(self) -> bool:
        """One input channel and one output channel per group."""
        return self.groups > 1 and self.weight.shape[:2] == (self.groups, 1)

    def then_affine(self, scale: Tensor, shift: Tensor) -> Conv:
        """The same layer followed by y * scale + shift."""
        return replace(self, weight=self.weight * scale.reshape(-1, 1, 1, 1), bias=self.bias * scale + shift)


@dataclass(frozen=True, eq=False)
class Affine:
    """y = x * scale + shift per channel: BatchNorm in eval mode, layer scale."""

    scale: Tensor
    shift: Tensor

    def as_conv(self) -> Conv:
        """The same as a depthwise layer with one tap."""
        return Conv(self.scale.reshape(-1, 1, 1, 1), self.shift, Geometry((1, 1)), groups=self.scale.numel())


@dataclass(frozen=True)
class Act:
    """An elementwise function; ``kind`` is one of the fused names, or None where only the callable is known."""

    kind: str | None
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pool:
    """Max or mean pooling."""

    geometry: Geometry
    mean: bool = False
    count_padding: bool = True


@dataclass(frozen=True)
class GlobalMean:
    """Mean over the whole grid: leaves rows, with the dense divisor H * W."""

    keepdim: bool


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over the channels of each position."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Same:
    """Changes nothing in eval mode."""


@dataclass(frozen=True)
class Pad:
    """Zeros around the grid, read by convolutions only: they take it into their own padding."""

    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Permute:
    """Moves the channel axis: nothing happens to rows."""

    to_last: bool


@dataclass(frozen=True)
class Add:
    """Sum of two values on one set."""


@dataclass(frozen=True)
class ScaleBy:
    """Rows times one vector per image (squeeze-and-excitation); ``vector`` is the argument position of the vector."""

    vector: int


@dataclass(frozen=True)
class Concat:
    """Concatenation over channels of values on one set."""


Kind = Conv | Affine | Act | Pool | GlobalMean | Norm | Same | Pad | Permute | Add | ScaleBy | Concat


@dataclass(frozen=True, eq=False)
class Op:
    """One recognised node: what it does and which nodes hold its rows."""

    kind: Kind
    rows: tuple[fx.Node, ...]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Context:
    """What recognising needs to know of the traced network."""

    modules: dict[str, nn.Module]
    shapes: dict[fx.Node, tuple[int, ...]]
    channels_last: dict[fx.Node, bool]
    """Nodes that are held as rows, and whether their channel axis is the last one."""
    constants: dict[fx.Node, Tensor]
    """Values of get_attr nodes."""


def recognise(node: fx.Node, context: Context) -> Op:
    """The operation at ``node``, if it can run on rows.

    Raises:
        Unsupported: with the reason.
    """
    if node.op == "call_module":
        module = context.modules[str(node.target)]
        reader = _MODULES.get(type(module))
        if reader is None:
            raise Unsupported(f"{type(module).__name__} does not run on rows")
        return _padded(Op(reader(module, node, context), (_first(node),)), context)
    table: dict[Any, Callable[[fx.Node, Context], Op]] = _FUNCTIONS if node.op == "call_function" else _METHODS
    if node.op == "call_function" and _name(node.target) == "stochastic_depth":  # torchvision's, known by name only
        return _stochastic_depth(node, context)
    if node.op not in ("call_function", "call_method") or node.target not in table:
        raise Unsupported(f"{_name(node.target)} does not run on rows")
    return _padded(table[node.target](node, context), context)


def _padded(op: Op, context: Context) -> Op:
    """A convolution behind a zero padding, as one convolution with that padding."""
    before = op.rows[0]
    if not isinstance(op.kind, Conv) or not (pad := _pad_at(before, context)):
        return op
    g = op.kind.geometry
    geometry = replace(
        g,
        padding=(g.padding[0] + pad.top, g.padding[1] + pad.left),
        extra=(g.extra[0] + pad.bottom - pad.top, g.extra[1] + pad.right - pad.left),
    )
    return Op(replace(op.kind, geometry=geometry), (_first(before),), op.notes)


def _pad_at(node: fx.Node, context: Context) -> Pad | None:
    if node.op != "call_module":
        return None
    module = context.modules[str(node.target)]
    return _zero_pad(module, node, context) if type(module) is nn.ZeroPad2d else None


def _zero_pad(module: nn.ZeroPad2d, node: fx.Node, context: Context) -> Pad:
    _need_channels(node, context, last=False)
    left, right, top, bottom = module.padding
    if min(module.padding) < 0:
        raise Unsupported("padding that crops")
    modules = [context.modules.get(str(u.target)) if u.op == "call_module" else None for u in node.users]
    users = zip(node.users, modules, strict=True)
    if not all(type(m) is nn.Conv2d or u.target in _CONVOLUTIONS for u, m in users):
        raise Unsupported("zero padding that something else than a convolution reads")
    return Pad(left, right, top, bottom)


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _first(node: fx.Node) -> fx.Node:
    value = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
    if not isinstance(value, fx.Node):
        raise Unsupported(f"{_name(node.target)} without a tensor argument")
    return value


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pair(value: Any) -> tuple[int, int]:
    """``3`` or ``(3, 5)`` as a pair."""
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)


# modules -------------------------------------------------------------------------------------------------------------


def conv_of(module: nn.Conv2d) -> Conv:
    """The layer as rows see it.

    Raises:
        Unsupported: a padding mode other than zeros, or padding that differs between the two sides.
    """
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode {module.padding_mode!r}: only zeros")
    if isinstance(module.padding, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if module.padding == "same" and any(t % 2 for t in total):
            raise Unsupported("padding 'same' with an even kernel pads the two sides differently")
        padding = (total[0] // 2, total[1] // 2) if module.padding == "same" else (0, 0)
    else:
        padding = pair(module.padding)
    bias = module.bias if module.bias is not None else module.weight.new_zeros(module.out_channels)
    geometry = Geometry(pair(module.kernel_size), pair(module.stride), padding, pair(module.dilation))
    return Conv(module.weight.detach(), bias.detach(), geometry, module.groups)


def _conv(module: nn.Conv2d, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=False)
    return conv_of(module)


def _linear(module: nn.Linear, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=True)
    bias = module.bias if module.bias is not None else module.weight.new_zeros(module.out_features)
    return Conv(module.weight.detach()[:, :, None, None], bias.detach(), Geometry((1, 1)))


def _batch_norm(module: nn.BatchNorm2d, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=False)
    if module.running_mean is None or module.running_var is None:
        raise Unsupported("BatchNorm without running statistics normalises with the batch itself")
    scale = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach()
    shift = -module.running_mean * scale
    return Affine(scale, shift if module.bias is None else shift + module.bias.detach())


def _layer_norm(module: nn.LayerNorm, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=True)
    return _norm_over(tuple(module.normalized_shape), module.weight, module.bias, module.eps)


def _norm_over(shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
    if len(shape) != 1:
        raise Unsupported("LayerNorm over positions needs the whole map")
    return Norm(None if weight is None else weight.detach(), None if bias is None else bias.detach(), eps)


def _max_pool(module: nn.MaxPool2d, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=False)
    if module.return_indices:
        raise Unsupported("max pooling that returns indices")
    stride = module.stride if module.stride is not None else module.kernel_size
    return Pool(_pool_geometry(module.kernel_size, stride, module.padding, module.dilation, module.ceil_mode))


def _avg_pool(module: nn.AvgPool2d, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=False)
    if module.divisor_override is not None:
        raise Unsupported("average pooling with a divisor of its own")
    if module.ceil_mode:
        raise Unsupported("average pooling with ceil_mode: its divisor depends on the border")
    geometry = _pool_geometry(module.kernel_size, module.stride, module.padding, 1, False)
    return Pool(geometry, mean=True, count_padding=module.count_include_pad)


def _pool_geometry(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Geometry:
    return Geometry(pair(kernel), pair(stride), pair(padding), pair(dilation), ceil_mode)


def _adaptive(module: nn.AdaptiveAvgPool2d, node: fx.Node, context: Context) -> Kind:
    _need_channels(node, context, last=False)
    size, grid = pair_or_none(module.output_size), context.shapes[_first(node)][2:]
    if size == (1, 1):
        return GlobalMean(keepdim=True)
    raise Unsupported(f"adaptive pooling of {tuple(grid)} to {module.output_size} needs the whole map")


def pair_or_none(value: Any) -> tuple[Any, Any]:
    """``1`` or ``(1, None)`` as a pair."""
    return (value, value) if not isinstance(value, list | tuple) else (value[0], value[1])


def _need_channels(node: fx.Node, context: Context, *, last: bool) -> None:
    if context.channels_last.get(_first(node), last) != last:
        axis = "the last axis" if last else "axis 1"
        raise Unsupported(f"{_name(node.target)} expects channels on {axis}")


def _act_module(kind: str | None) -> Callable[[nn.Module, fx.Node, Context], Kind]:
    def read(module: nn.Module, node: fx.Node, context: Context) -> Kind:
        name = kind
        if isinstance(module, nn.GELU) and module.approximate != "none":
            name = None
        return Act(name, _out_of_place(module))

    return read


def _out_of_place(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x.clone()) if getattr(module, "inplace", False) else module(x)


def _same(module: nn.Module, node: fx.Node, context: Context) -> Kind:
    return Same()


def _softmaxless(kinds: dict[type[nn.Module], str | None]) -> dict[type[nn.Module], Any]:
    return {cls: _act_module(kind) for cls, kind in kinds.items()}


_MODULES: dict[type[nn.Module], Any] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.ZeroPad2d: _zero_pad,
    nn.Identity: _same,
    nn.Dropout: _same,
    nn.Dropout2d: _same,
    **_softmaxless(
        {
            nn.ReLU: "relu",
            nn.ReLU6: "relu6",
            nn.SiLU: "silu",
            nn.GELU: "gelu",
            nn.Hardswish: "hardswish",
            nn.Hardsigmoid: None,
            nn.Sigmoid: None,
            nn.Tanh: None,
            nn.LeakyReLU: None,
            nn.ELU: None,
            nn.CELU: None,
            nn.SELU: None,
            nn.Mish: None,
            nn.Softplus: None,
            nn.Hardtanh: None,
        }
    ),
}


# functions and methods -----------------------------------------------------------------------------------------------


def _act(kind: str | None, function: Callable[..., Tensor]) -> Callable[[fx.Node, Context], Op]:
    def read(node: fx.Node, context: Context) -> Op:
        name = kind if kind != "gelu" or _argument(node, 1, "approximate", "none") == "none" else None
        keywords = {k: v for k, v in node.kwargs.items() if k not in ("input", "inplace")}
        rest = tuple(a for a in node.args[1:] if not isinstance(a, bool))
        return Op(Act(name, lambda x: function(x, *rest, **keywords)), (_first(node),))

    return read


def _add(node: fx.Node, context: Context) -> Op:
    a, b = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if node.kwargs.get("alpha", 1) != 1:
        raise Unsupported("add with alpha")
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        raise Unsupported("adding a number shifts the fill; not supported on rows")
    if a in context.channels_last and b in context.channels_last:
        if context.channels_last[a] != context.channels_last[b]:
            raise Unsupported("adding values with channels on different axes")
        return Op(Add(), (a, b))
    raise Unsupported("adding rows to a dense value")


def _mul(node: fx.Node, context: Context) -> Op:
    a, b = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    for position, (rows, other) in enumerate(((b, a), (a, b))):
        if not isinstance(rows, fx.Node) or rows not in context.channels_last:
            continue
        channels = context.shapes[rows][-1 if context.channels_last[rows] else 1]
        if isinstance(other, fx.Node) and other in context.constants:
            scale = context.constants[other].detach()
            ok = scale.shape == (channels,) if context.channels_last[rows] else scale.shape[-3:] == (channels, 1, 1)
            if ok and scale.numel() == channels:
                return Op(Affine(scale.reshape(-1), torch.zeros_like(scale).reshape(-1)), (rows,))
        elif isinstance(other, fx.Node) and other not in context.channels_last:
            shape = context.shapes.get(other, ())
            if len(shape) == 4 and shape[1:] == (channels, 1, 1) and not context.channels_last[rows]:
                note = f"{node.name}: squeeze-and-excitation averages over the fill, so the fill changes every channel"
                return Op(ScaleBy(position), (rows,), (note,))
    raise Unsupported("product that is not a scale per channel")


def _cat(node: fx.Node, context: Context) -> Op:
    values, axis = node.args[0], _argument(node, 1, "dim", 0)
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
    _need_channels(node, context, last=False)
    weight, bias = _argument(node, 1, "weight", None), _argument(node, 2, "bias", None)
    if weight not in context.constants or (bias is not None and bias not in context.constants):
        raise Unsupported("convolution with computed weights")
    padding = _argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        raise Unsupported(f"functional convolution with padding {padding!r}")
    w = context.constants[weight].detach()
    b = w.new_zeros(w.shape[0]) if bias is None else context.constants[bias].detach()
    stride, dilation = pair(_argument(node, 3, "stride", 1)), pair(_argument(node, 5, "dilation", 1))
    geometry = Geometry(pair(w.shape[2:]), stride, pair(padding), dilation)
    return Op(Conv(w, b, geometry, int(_argument(node, 6, "groups", 1))), (_first(node),))


def _functional_norm(node: fx.Node, context: Context) -> Op:
    _need_channels(node, context, last=True)

    def constant(position: int, name: str) -> Tensor | None:
        value = _argument(node, position, name, None)
        if value is None:
            return None
        if not isinstance(value, fx.Node) or value not in context.constants:
            raise Unsupported("LayerNorm with a computed weight")
        return context.constants[value]

    shape = _argument(node, 1, "normalized_shape", ())
    kind = _norm_over(tuple(shape), constant(2, "weight"), constant(3, "bias"), _argument(node, 4, "eps", 1e-5))
    return Op(kind, (_first(node),))


def _functional_batch_norm(node: fx.Node, context: Context) -> Op:
    _need_channels(node, context, last=False)
    names = ("running_mean", "running_var", "weight", "bias")
    values = [_argument(node, i + 1, name, None) for i, name in enumerate(names)]
    if _argument(node, 5, "training", False) is not False:
        raise Unsupported("batch_norm in training mode")
    tensors = [context.constants.get(v) if isinstance(v, fx.Node) else None for v in values]
    mean, var, weight, bias = tensors
    if mean is None or var is None:
        raise Unsupported("BatchNorm without running statistics normalises with the batch itself")
    scale = (var + _argument(node, 7, "eps", 1e-5)).rsqrt()
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean * scale
    return Op(Affine(scale, shift if bias is None else shift + bias.detach()), (_first(node),))


def _permute(node: fx.Node, context: Context) -> Op:
    order = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else node.kwargs.get("dims")
    if order is None or not isinstance(order, list | tuple):
        raise Unsupported("permute without a fixed order")
    source, fixed = _first(node), tuple(o % 4 for o in order if isinstance(o, int))
    last = context.channels_last.get(source, False)
    if fixed == (0, 2, 3, 1) and not last:
        return Op(Permute(to_last=True), (source,))
    if fixed == (0, 3, 1, 2) and last:
        return Op(Permute(to_last=False), (source,))
    raise Unsupported(f"permute to {fixed}")


def _mean(node: fx.Node, context: Context) -> Op:
    axes = _argument(node, 1, "dim", None)
    source = _first(node)
    listed = sorted(a % 4 for a in axes) if isinstance(axes, list | tuple) else None
    if listed != ([1, 2] if context.channels_last.get(source, False) else [2, 3]):
        raise Unsupported("mean over other axes than the grid")
    if context.channels_last.get(source, False):
        raise Unsupported("mean over the grid with channels last")
    return Op(GlobalMean(keepdim=bool(_argument(node, 2, "keepdim", False))), (source,))


def _functional_adaptive(node: fx.Node, context: Context) -> Op:
    _need_channels(node, context, last=False)
    if pair_or_none(_argument(node, 1, "output_size", None)) != (1, 1):
        raise Unsupported("adaptive pooling to another size than 1 needs the whole map")
    return Op(GlobalMean(keepdim=True), (_first(node),))


def _functional_max_pool(node: fx.Node, context: Context) -> Op:
    _need_channels(node, context, last=False)
    kernel = _argument(node, 1, "kernel_size", None)
    stride = _argument(node, 2, "stride", None) or kernel
    padding, dilation = _argument(node, 3, "padding", 0), _argument(node, 4, "dilation", 1)
    if _argument(node, 6, "return_indices", False):
        raise Unsupported("max pooling that returns indices")
    ceil_mode = bool(_argument(node, 5, "ceil_mode", False))
    return Op(Pool(_pool_geometry(kernel, stride, padding, dilation, ceil_mode)), (_first(node),))


def _keep(node: fx.Node, context: Context) -> Op:
    if node.target is F.dropout and _argument(node, 2, "training", True) is not False:
        raise Unsupported("dropout that is on")
    return Op(Same(), (_first(node),))


def _stochastic_depth(node: fx.Node, context: Context) -> Op:
    if _argument(node, 3, "training", True) is not False:
        raise Unsupported("stochastic depth that is on")
    return Op(Same(), (_first(node),))


_CONVOLUTIONS = (F.conv2d, torch.conv2d)

_FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op]] = {
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
    F.dropout: _keep,
}

_METHODS: dict[Any, Callable[[fx.Node, Context], Op]] = {
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
    "contiguous": _keep,
    "clone": _keep,
}
