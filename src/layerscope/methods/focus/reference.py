"""The semantics, said as slowly and plainly as possible: the dense network with inactive positions overwritten.

Every value after the cut is computed on the whole grid by the original modules and then masked:

    x~[i] = x[i] where i is active, fill elsewhere;   o is active if any i of its s x s cell is.

Nothing here is shared with the fast paths beyond the plan's statement of which values hold a fill, so the two check
each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from layerscope.methods.focus.plan import Plan


def masked_forward(plan: Plan, fills: dict[fx.Node, Tensor], x: Tensor, mask: Tensor) -> Any:
    """The network's output on ``x`` [N, C, H, W] with the active set ``mask`` [N, h, w] at the cut."""
    with torch.no_grad():
        return _Masked(plan, fills, mask).run(x)


class _Masked(fx.Interpreter):
    def __init__(self, plan: Plan, fills: dict[fx.Node, Tensor], mask: Tensor) -> None:
        super().__init__(plan.traced.module)
        self._plan, self._fills = plan, fills
        self._masks: dict[fx.Node, Tensor] = {plan.cut.node: mask}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        last = self._plan.channels_last.get(n, False)
        if n is not self._plan.cut.node:
            source = next((i for i in n.all_input_nodes if i in self._masks), None)
            if source is None or n not in self._plan.channels_last:
                return value
            if n in self._plan.alias:  # the same rows: zero padding, parts of a split, groups of a shuffle
                self._masks[n] = self._masks[source]
                return value
            size = value.shape[1:3] if last else value.shape[2:]
            self._masks[n] = shrink(self._masks[source], (int(size[0]), int(size[1])))
        elif not isinstance(value, Tensor):
            return value
        if n not in self._fills:  # inside a folded group, or the same rows under another name
            return value
        rows = value if last else value.movedim(1, -1)
        rows = torch.where(self._masks[n][..., None], rows, self._fills[n])
        return rows if last else rows.movedim(-1, 1)


def shrink(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The set on a coarser grid: active where any position of the s x s cell is; the last cell may be cut off, or
    stick out, and then repeats the border.

    A stride of 1 may still take positions off the border or add some: the same at both sides.
    """
    height, width = mask.shape[1:]
    if mask.shape[1:] == size:
        return mask
    stride = round(height / size[0]), round(width / size[1])
    if max(stride) <= 1:
        rows, columns = (
            (torch.arange(new) + (old - new) // 2).clamp(0, old - 1)
            for new, old in zip(size, (height, width), strict=True)
        )
        return mask[:, rows][:, :, columns]
    missing = [max(0, new * s - old) for new, s, old in zip(size, stride, (height, width), strict=True)]
    whole = F.pad(mask[:, None].float(), (0, missing[1], 0, missing[0]), mode="replicate")
    return F.max_pool2d(whole, stride)[:, 0, : size[0], : size[1]] > 0
