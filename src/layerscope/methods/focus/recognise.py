"""One torch.fx node as an operation on rows, or the reason why it is none.

An unsupported operation is no error: it only ends the region that runs on rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from layerscope.methods.focus.ops import Context, Conv, Op, Pad, Unsupported
from layerscope.methods.focus.read_functions import FUNCTIONS, METHODS, stochastic_depth
from layerscope.methods.focus.read_modules import MODULES, is_same_conv, same_conv, zero_pad
from layerscope.methods.focus.reading import first_argument, name_of


def recognise(node: fx.Node, context: Context) -> Op:
    """The operation at ``node``, if it can run on rows.

    Raises:
        Unsupported: with the reason.
    """
    if node.op == "call_module":
        module = context.modules[str(node.target)]
        kind = type_before_parametrizations(module)
        reader = same_conv if is_same_conv(kind) else MODULES.get(kind)
        if reader is None:
            why = context.whole.get(str(node.target), "")
            raise Unsupported(f"{kind.__name__} does not run on rows" + (f": {why}" if why else ""))
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"{kind.__name__} has forward hooks, which rows would not call")
        return _padded(Op(reader(module, node, context), (first_argument(node),)), context)
    table: dict[Any, Callable[[fx.Node, Context], Op]] = FUNCTIONS if node.op == "call_function" else METHODS
    if node.op == "call_function" and name_of(node.target) == "stochastic_depth":  # torchvision's, known by name only
        return stochastic_depth(node, context)
    if node.op not in ("call_function", "call_method") or node.target not in table:
        raise Unsupported(f"{name_of(node.target)} does not run on rows")
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
    return Op(replace(op.kind, geometry=geometry), (first_argument(before),), op.notes)


def _pad_at(node: fx.Node, context: Context) -> Pad | None:
    if node.op != "call_module":
        return None
    module = context.modules[str(node.target)]
    return zero_pad(module, node, context) if type(module) is nn.ZeroPad2d else None
