"""Which axis of a tensor holds samples, which channels, which positions; and memory-order views on it.

Reductions are only cheap along contiguous memory, so a tensor is looked at in the order it lies in: ``[N, C, S]`` for
contiguous maps and ``[N, S, C]`` for tokens and channels-last maps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from layerscope.norms.base import ChannelNorm
from layerscope.norms.batch import BatchNorm
from layerscope.probe.records import Layout


class View(NamedTuple):
    """A tensor seen as samples, channels, positions."""

    layout: Layout
    data: Tensor
    """[N, C, S] if ``channels_first``, else [N, S, C]; contiguous, detached, float32 or wider."""
    channels_first: bool
    positions: int


class AxisMemory:
    """Decides where channels are in a 3- or 4-axis tensor.

    The last convolution, linear or norm layer before settles it: an activation does not know which axis it works on.
    """

    def __init__(self) -> None:
        self.channels_last: dict[int, bool] = {3: True}

    def channels_are_last(self, module: nn.Module | None, out: Tensor) -> bool:
        """Whether the last axis of ``out`` is the channel axis."""
        decided = _decides(module, out)
        if decided is not None:
            self.channels_last[out.ndim] = decided
        return self.channels_last.get(out.ndim, False)


def _decides(module: nn.Module | None, out: Tensor) -> bool | None:
    if isinstance(module, ChannelNorm | BatchNorm):
        return out.ndim == 3
    if isinstance(module, _ConvNd | _NormBase | nn.GroupNorm):
        return False
    if isinstance(module, nn.Linear | nn.MultiheadAttention | nn.Embedding):
        return True
    # looked up in the instance: where a module lacks an attribute, asking it takes longer than all the rest here
    shape = None if module is None else vars(module).get("normalized_shape")
    if shape is None or out.ndim < 3:
        return None
    shape = tuple(shape) if isinstance(shape, tuple | list | torch.Size) else (int(shape),)
    if type(module).__module__.startswith("torch.nn") or out.shape[1:2] != shape:
        return len(shape) == 1
    # a layer norm over axis 1 of a map (ConvNeXt style) is a subclass that permutes inside
    return out.shape[-1:] == shape and type(module).__name__.endswith("Norm")


def samples_first(out: Tensor, samples: int, channels_last: bool) -> tuple[Tensor, bool] | None:
    """``out`` with the sample axis in front and whether its channels are last; None where it has no sample axis.

    Windows, heads, tokens and views of one sample that were folded into the sample axis ([N k, C], [N k, S, C],
    [N k, C, H, W]) are unfolded into positions; sequence-first tensors ([S, N, C]) are turned round.
    """
    if out.ndim < 2 or out.numel() == 0:
        return None
    if out.shape[0] == samples:
        return out, channels_last
    if out.ndim == 3 and out.shape[1] == samples:
        return out.transpose(0, 1), channels_last
    if out.shape[0] % samples == 0:
        rows = out if channels_last or out.ndim == 2 else out.movedim(1, -1)
        return rows.reshape(samples, -1, rows.shape[-1]), True
    return None


def view(out: Tensor, channels_last: bool) -> View:
    """``out`` [N, ...] in memory order; copies only what is neither contiguous nor channels-last in memory."""
    x = out.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.ndim == 2:
        return View("vector", x.contiguous().unsqueeze(2), True, 1)
    if channels_last:
        data = x.contiguous().flatten(1, -2)
        return View("token", data, False, data.shape[1])
    if not x.is_contiguous():
        turned = x.movedim(1, -1)
        if turned.is_contiguous():
            data = turned.flatten(1, -2)
            return View("conv", data, False, data.shape[1])
        x = x.contiguous()
    data = x.flatten(2)
    return View("conv", data, True, data.shape[2])
