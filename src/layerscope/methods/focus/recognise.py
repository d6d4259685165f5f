"""One torch.fx node as an operation on rows, or the reason why it is none.

An unsupported operation is no error: it only ends the region that runs on rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from layerscope.methods.focus.ops import Context, Conv, Op, Pad, Unsupported
from layerscope.methods.focus.read_functions import FUNCTIONS, METHODS, stochastic_depth
from layerscope.methods.focus.read_modules import MODULES, is_same_conv, same_conv
from layerscope.methods.focus.reading import argument, first_argument, name_of, need_channels


def recognise(node: fx.Node, context: Context) -> Op:
    """The operation at ``node``, if it can run on rows.

    Raises:
        Unsupported: with the reason.
    """
    if zeros_around(node, context) is not None:
        return Op(_pad(node, context), (first_argument(node),))
    op = _without_pads(node, context)
    before = op.rows[0]
    if not isinstance(op.kind, Conv) or zeros_around(before, context) is None:
        return op
    # a convolution behind a zero padding is one convolution with that padding
    pad, g = _pad(before, context), op.kind.geometry
    geometry = replace(
        g,
        padding=(g.padding[0] + pad.top, g.padding[1] + pad.left),
        extra=(g.extra[0] + pad.bottom - pad.top, g.extra[1] + pad.right - pad.left),
    )
    return Op(replace(op.kind, geometry=geometry), (first_argument(before),), op.notes)


def zeros_around(node: fx.Node, context: Context) -> tuple[int, ...] | None:
    """(left, right, top, bottom) if ``node`` pads the grid with zeros, else None."""
    if node.op == "call_module":
        module = context.modules[str(node.target)]
        if type(module) is nn.ZeroPad2d or (type(module) is nn.ConstantPad2d and module.value == 0):
            return tuple(module.padding)
    elif node.op == "call_function" and node.target is F.pad:
        amounts = argument(node, 1, "pad", ())
        is_zero = argument(node, 2, "mode", "constant") == "constant" and not argument(node, 3, "value", None)
        if is_zero and len(amounts) == 4 and all(isinstance(n, int) for n in amounts):
            return tuple(amounts)
    return None


def _pad(node: fx.Node, context: Context) -> Pad:
    """Zeros around the grid, if only convolutions on rows read them: they take it into their own padding."""
    need_channels(node, context, last=False)
    amounts = zeros_around(node, context)
    assert amounts is not None
    if min(amounts) < 0:
        raise Unsupported("padding that crops")
    for user in node.users:
        kind = _without_pads(user, context).kind
        if not isinstance(kind, Conv) or kind.geometry.same:
            raise Unsupported("zero padding that something else than a convolution reads")
    return Pad(*amounts)


def _without_pads(node: fx.Node, context: Context) -> Op:
    if node.op == "call_module":
        module = context.modules[str(node.target)]
        kind = type_before_parametrizations(module)
        reader = same_conv if is_same_conv(kind) else MODULES.get(kind)
        if reader is None:
            why = context.whole.get(str(node.target), "")
            raise Unsupported(f"{kind.__name__} does not run on rows" + (f": {why}" if why else ""))
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"{kind.__name__} has forward hooks, which rows would not call")
        return Op(reader(module, node, context), (first_argument(node),))
    table: dict[Any, Callable[[fx.Node, Context], Op]] = FUNCTIONS if node.op == "call_function" else METHODS
    if node.op == "call_function" and name_of(node.target) == "stochastic_depth":  # torchvision's, known by name only
        return stochastic_depth(node, context)
    if node.op not in ("call_function", "call_method") or node.target not in table:
        raise Unsupported(f"{name_of(node.target)} does not run on rows")
    return table[node.target](node, context)
