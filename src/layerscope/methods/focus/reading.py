"""Small helpers for reading the arguments of traced operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from layerscope.methods.focus.levels import Geometry
from layerscope.methods.focus.ops import Context, Norm, Pool, Unsupported


def name_of(target: Any) -> str:
    """The name of a call's target."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def first_argument(node: fx.Node) -> fx.Node:
    """The first argument, which must be a tensor."""
    value = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
    if not isinstance(value, fx.Node):
        raise Unsupported(f"{name_of(node.target)} without a tensor argument")
    return value


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pair(value: Any) -> tuple[int, int]:
    """``3`` or ``(3, 5)`` as a pair."""
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)


def pair_or_none(value: Any) -> tuple[Any, Any]:
    """``1`` or ``(1, None)`` as a pair."""
    return (value, value) if not isinstance(value, list | tuple) else (value[0], value[1])


def need_channels(node: fx.Node, context: Context, *, last: bool) -> None:
    """Raise unless the input has its channels on the axis that this operation works on."""
    if context.channels_last.get(first_argument(node), last) != last:
        axis = "the last axis" if last else "axis 1"
        raise Unsupported(f"{name_of(node.target)} expects channels on {axis}")


def norm_over(shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
    """LayerNorm, which must be over channels alone."""
    if len(shape) != 1:
        raise Unsupported("LayerNorm over positions needs the whole map")
    return Norm(None if weight is None else weight.detach(), None if bias is None else bias.detach(), eps)


def pool_geometry(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Geometry:
    """A pooling window from torch's arguments."""
    stride = kernel if stride is None or stride == [] or stride == () else stride
    return Geometry(pair(kernel), pair(stride), pair(padding), pair(dilation), ceil_mode)


def mean_pool(kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_padding: bool, divisor: Any) -> Pool:
    """Average pooling from torch's arguments.

    Raises:
        Unsupported: a divisor of its own, or one that counts padding and is cut off at the border.
    """
    if divisor is not None:
        raise Unsupported("average pooling with a divisor of its own")
    geometry = pool_geometry(kernel, stride, padding, 1, ceil_mode)
    if not ceil_mode:
        return Pool(geometry, mean=True, count_padding=count_padding)
    # a window that sticks out is divided by what it has; without padding those are the positions of the grid
    if count_padding and geometry.padding != (0, 0):
        raise Unsupported("average pooling with ceil_mode that counts padding: its divisor depends on the border")
    return Pool(geometry, mean=True, count_padding=False)
