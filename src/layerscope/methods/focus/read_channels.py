"""Operations that only move channels about (split, slice, shuffle) or ask for a size: rows need no work, or a copy."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from layerscope.methods.focus.ops import Context, Op, Order, Part, Same, SizeOf, Slice, Unsupported
from layerscope.methods.focus.reading import argument, first_argument, name_of, need_channels


def _split(node: fx.Node, context: Context) -> Op:
    need_channels(node, context, last=False)
    if argument(node, 2, "dim", 0) not in (1, -3):
        raise Unsupported("split along another axis than channels")
    if any(u.target is not operator.getitem or not isinstance(u.args[1], int) for u in node.users):
        raise Unsupported("a split that is passed on whole")
    _pieces(node, context)
    return Op(Part(), (first_argument(node),))


def _getitem(node: fx.Node, context: Context) -> Op:
    source, index = node.args
    if not isinstance(source, fx.Node):
        raise Unsupported("indexing something that is no tensor")
    if isinstance(index, int) and source.target in SPLITS:
        sizes = _pieces(source, context)
        index %= len(sizes)
        return Op(Slice(sum(sizes[:index]), sum(sizes[: index + 1])), (first_argument(source),))
    channels = context.shapes.get(source, ())[1:2]
    whole = slice(None, None, None)
    if (
        isinstance(index, tuple)
        and len(index) in (2, 3, 4)
        and channels
        and not context.channels_last.get(source, False)
        and all(i == whole for i in (index[0], *index[2:]))
        and isinstance(index[1], slice)
        and all(v is None or isinstance(v, int) for v in (index[1].start, index[1].stop, index[1].step))
    ):
        start, stop, step = index[1].indices(channels[0])
        if step == 1 and stop > start:
            return Op(Slice(start, stop), (source,))
    raise Unsupported("indexing along another axis than channels")


def _pieces(node: fx.Node, context: Context) -> list[int]:
    """Channels of each part of a split or chunk."""
    channels = context.shapes[first_argument(node)][1]
    how = argument(node, 1, "chunks" if name_of(node.target) == "chunk" else "split_size_or_sections", None)
    how = argument(node, 1, "split_size", None) if how is None else how
    if isinstance(how, list | tuple) and all(isinstance(n, int) for n in how):
        return list(how)
    if not isinstance(how, int):
        raise Unsupported("a split into computed sizes")
    size = -(-channels // how) if name_of(node.target) == "chunk" else how
    return [min(size, channels - start) for start in range(0, channels, size)]


def _size(node: fx.Node, context: Context) -> Op:
    axis = argument(node, 1, "dim", None)
    if axis is not None and not isinstance(axis, int):
        raise Unsupported("a size along a computed axis")
    return Op(SizeOf(axis), (first_argument(node),))


def _getattr(node: fx.Node, context: Context) -> Op:
    if node.args[1:] != ("shape",):
        raise Unsupported(f"attribute {node.args[1]!r} of a tensor")
    return Op(SizeOf(None), (first_argument(node),))


def shuffle(node: fx.Node, context: Context) -> Op:
    """Channel shuffle: view as groups, transpose, view back. Every node of it is :class:`Part` but the last.

    The whole chain is tried out on numbers that tell all positions apart.

    Raises:
        Unsupported: the chain does anything else than reorder channels.
    """
    chain = _chain(node, context)
    source = first_argument(chain[0])
    if len(chain) == 1 and node.target == "contiguous":
        return Op(Same(), (source,))
    order = _order(source, chain, context)
    if order is None:
        raise Unsupported(f"{name_of(node.target)} that is no channel shuffle")
    return Op(Order(order) if node is chain[-1] else Part(), (source,))


def _chain(node: fx.Node, context: Context) -> list[fx.Node]:
    """The nodes around this one that are joined by values of five axes, each read by the next alone."""

    def grouped(n: fx.Node) -> bool:
        return len(context.shapes.get(n, ())) == 5

    chain = [node]
    while grouped(first_argument(chain[0])):
        chain.insert(0, first_argument(chain[0]))
    while grouped(chain[-1]) and len(chain[-1].users) == 1:
        chain.append(next(iter(chain[-1].users)))
    return chain


def _order(source: fx.Node, chain: list[fx.Node], context: Context) -> Tensor | None:
    """Where each channel comes from, or None if ``chain`` is anything else than an order of channels."""
    shape = context.shapes.get(source, ())
    moves = all(n.target in SHUFFLING and all(i in context.plain for i in n.all_input_nodes[1:]) for n in chain)
    if len(shape) != 4 or context.channels_last.get(source, False) or not moves:
        return None
    plain: dict[fx.Node, Any] = dict(context.plain)
    start = torch.arange(torch.Size(shape).numel()).reshape(shape)
    value: Any = start
    for node in chain:
        args: Any = fx.map_arg(node.args[1:], plain.__getitem__)
        value = (getattr(value, node.target) if isinstance(node.target, str) else _bound(node.target, value))(*args)
    if tuple(value.shape) != shape:
        return None
    order: Tensor = value[0, :, 0, 0] // (shape[2] * shape[3])
    return order if torch.equal(value, start[:, order]) else None


def _bound(function: Any, value: Any) -> Callable[..., Any]:
    return lambda *args: function(value, *args)


SPLITS = (torch.split, torch.chunk, "split", "chunk")
SHUFFLING = (torch.reshape, torch.transpose, torch.permute, "view", "reshape", "transpose", "permute", "contiguous")

CHANNEL_FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op]] = {
    operator.getitem: _getitem,
    getattr: _getattr,
    torch.split: _split,
    torch.chunk: _split,
    torch.reshape: shuffle,
    torch.transpose: shuffle,
}
CHANNEL_METHODS: dict[Any, Callable[[fx.Node, Context], Op]] = {
    "split": _split,
    "chunk": _split,
    "size": _size,
    "view": shuffle,
    "reshape": shuffle,
    "transpose": shuffle,
    "contiguous": shuffle,
}
