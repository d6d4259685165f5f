"""Which classes are norms, and where each keeps its channels, its affine weights and its activation.

Classes are matched exactly, by qualified name, never with ``isinstance``: a class that *inherits* from a norm often
holds an activation as well, and replacing it by a plain norm would delete that activation without a word. Matching by
name also means that an optional package is known here without being imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from layerscope.errors import SwapError

Layout = Literal["map", "last", "own"]


@dataclass(frozen=True)
class Known:
    """What one norm module is, read off the module."""

    channels: int
    layout: Layout = "map"
    """``map``: channels on axis 1, [N, C, ...]. ``last``: on the last axis, [N, ..., C]. ``own``: as the norms of this
    package read their input, [N, C], tokens [N, S, C] or maps [N, C, ...]."""
    ndim: tuple[int, ...] = ()
    """Numbers of axes the layer takes; empty where it takes any."""
    weight: torch.Tensor | None = None
    """Scale, C values, or None."""
    bias: torch.Tensor | None = None
    """Shift, C values, or None."""
    drop: nn.Module | None = None
    """Drop layer inside the norm class, run after the norm."""
    act: nn.Module | None = None
    """Activation inside the norm class, run after the drop layer."""
    family: str | None = None
    """The spec that says the same (``batch``, ``group:groups=8``): a site that is asked to become it is left alone."""
    refused: str | None = None
    """Why a module of this class can never be exchanged."""


Adapter = Callable[[nn.Module], Known]
F = TypeVar("F", bound=Adapter)

_ADAPTERS: dict[str, Adapter] = {}


def qualified_name(cls: type) -> str:
    """``package.module.Class``: the key of the registry."""
    return f"{cls.__module__}.{cls.__qualname__}"


def register_adapter(*classes: type | str) -> Callable[[F], F]:
    """Teach surgery a norm class (exactly this class, no subclass): a function module -> :class:`Known`.

    ::

        @register_adapter(MyNorm)
        def _(module):
            return Known(channels=module.dim, weight=module.scale)
    """

    def register(adapter: F) -> F:
        for cls in classes:
            _ADAPTERS[cls if isinstance(cls, str) else qualified_name(cls)] = adapter
        return adapter

    return register


def describe(module: nn.Module) -> Known | None:
    """What this module is, if it is a norm of a known class or looks like one of an unknown class; else None.

    An unknown class comes back with ``refused`` set: it is listed, and left alone.
    """
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        is_norm = "norm" in module.original_name.lower() and not any(True for _ in module.children())
        return Known(0, refused="scripted, which is frozen: exchange layers first, then script") if is_norm else None
    adapter = _ADAPTERS.get(qualified_name(cls))
    if adapter is not None:
        return adapter(module)
    parent = next((base for base in cls.__mro__[1:] if qualified_name(base) in _ADAPTERS), None)
    if parent is not None:
        return Known(
            0,
            refused=f"a subclass of {parent.__name__} that is not known here: it may hold an activation or change the "
            "statistics; teach it with surgery.register_adapter",
        )
    is_container = any(True for _ in module.children())
    if "norm" in cls.__name__.lower() and not is_container:
        return Known(0, refused="called a norm, but its class is not known; teach it with surgery.register_adapter")
    return None


def is_act(module: nn.Module | None) -> bool:
    """Whether there is something here that computes: not None and not the identity."""
    return module is not None and type(module) is not nn.Identity


def _of(
    module: nn.Module, channels: int, *, layout: Layout = "map", ndim: tuple[int, ...] = (), family: str | None = None
) -> Known:
    """The usual case: per-channel ``weight`` and ``bias``, and ``drop`` and ``act`` inside fused classes."""
    scale, shift, drop, act = (getattr(module, name, None) for name in ("weight", "bias", "drop", "act"))
    return Known(channels, layout, ndim, scale, shift, drop, act, family)


def _number(module: nn.Module, name: str) -> int:
    value = getattr(module, name)
    if not isinstance(value, int):
        raise SwapError(f"{type(module).__name__}.{name} is {value!r}, not a number of channels")
    return value


def _shape(module: nn.Module) -> tuple[int, ...]:
    shape: int | tuple[int, ...] = vars(module)["normalized_shape"]
    return (shape,) if isinstance(shape, int) else tuple(shape)


_AXES: dict[type, tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,),
    nn.InstanceNorm1d: (3,), nn.InstanceNorm2d: (4,), nn.InstanceNorm3d: (5,),
}  # fmt: skip
_ACT = "timm.layers.norm_act."
_NORM = "timm.layers.norm."


@register_adapter(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: nn.Module) -> Known:
    return _of(module, _number(module, "num_features"), ndim=_AXES[type(module)], family="batch")


@register_adapter(nn.SyncBatchNorm)
def _sync_batch_norm(module: nn.Module) -> Known:
    return _of(module, _number(module, "num_features"), family="batch")


@register_adapter(_ACT + "BatchNormAct2d", _ACT + "SyncBatchNormAct")
def _batch_norm_act(module: nn.Module) -> Known:
    return _of(module, _number(module, "num_features"), ndim=(4,), family="batch")


@register_adapter(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(module: nn.Module) -> Known:
    family = None if module.track_running_stats else "instance"
    return _of(module, _number(module, "num_features"), ndim=_AXES[type(module)], family=family)


@register_adapter("torchvision.ops.misc.FrozenBatchNorm2d", _ACT + "FrozenBatchNormAct2d",
                  "timm.layers.filter_response_norm.FilterResponseNormAct2d")  # fmt: skip
def _sized_by_weight(module: nn.Module) -> Known:
    weight = module.weight
    return _of(module, weight.numel() if isinstance(weight, torch.Tensor) else 0, ndim=(4,))


@register_adapter(nn.GroupNorm, _NORM + "GroupNorm", _NORM + "GroupNorm1",
                  _ACT + "GroupNormAct", _ACT + "GroupNorm1Act")  # fmt: skip
def _group_norm(module: nn.Module) -> Known:
    groups = _number(module, "num_groups")
    return _of(module, _number(module, "num_channels"), family=f"group:groups={groups}")


@register_adapter(nn.LayerNorm, _NORM + "LayerNorm", _NORM + "LayerNormFp32",
                  _ACT + "LayerNormAct", _ACT + "LayerNormActFp32")  # fmt: skip
def _layer_norm(module: nn.Module) -> Known:
    shape = _shape(module)
    if len(shape) == 1:
        return _of(module, shape[0], layout="last", family="layer")
    if len(shape) == 3:
        # [C, H, W] is torch's convention; one scale per element, not per channel, so there is no affine map to carry
        return Known(shape[0], ndim=(4,))
    return Known(0, refused=f"normalizes over {len(shape)} axes of shape {shape}: which one is the channels is unknown")


@register_adapter(nn.RMSNorm, _NORM + "RmsNorm", _NORM + "RmsNormFp32",
                  _ACT + "RmsNormAct", _ACT + "RmsNormActFp32")  # fmt: skip
def _rms_norm(module: nn.Module) -> Known:
    shape = _shape(module)
    if len(shape) == 1:
        return _of(module, shape[0], layout="last")
    return Known(0, refused=f"normalizes over {len(shape)} axes of shape {shape}: which one is the channels is unknown")


@register_adapter(
    *(_NORM + name for name in ("LayerNorm2d", "LayerNorm2dFp32", "RmsNorm2d", "RmsNorm2dFp32")),
    *(_ACT + name for name in ("LayerNormAct2d", "LayerNormAct2dFp32", "RmsNormAct2d", "RmsNormAct2dFp32")),
    "torchvision.models.convnext.LayerNorm2d",
)
def _per_position(module: nn.Module) -> Known:
    return _of(module, _shape(module)[0], ndim=(4,))


@register_adapter(nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d,
                  nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d)  # fmt: skip
def _lazy(module: nn.Module) -> Known:
    return Known(0, refused="does not know its channels yet: run one batch through the network first")


@register_adapter(nn.LocalResponseNorm, nn.CrossMapLRN2d)
def _local_response(module: nn.Module) -> Known:
    return Known(0, refused="local response normalization does not say how many channels it gets")


_OURS = "layerscope.norms."


@register_adapter(*(_OURS + name for name in (
    "frn.FilterResponseNorm", "running.VarianceNorm", "running.MeanNorm", "rms.RMSNorm", "rms.LayerNorm2d",
    "rms.ScaleNorm", "ghost.GhostBatchNorm", "renorm.BatchRenorm", "switchable.SwitchableNorm",
    "pointwise.DynamicTanh", "pointwise.DynamicErf", "pointwise.GlobalResponseNorm",
    "mixture.MixtureNorm", "mixture_channel.ChannelMixtureNorm", "mode.ModeNorm")))  # fmt: skip
def _ours(module: nn.Module) -> Known:
    return _of(module, _number(module, "channels"), layout="own")


@register_adapter(*(_OURS + f"mixture_kinds.MixtureNorm{n}d" for n in (1, 2, 3)))
def _ours_by_rank(module: nn.Module) -> Known:
    axes = {"1": (2, 3), "2": (4,), "3": (5,)}[type(module).__name__[-2]]
    return _of(module, _number(module, "channels"), ndim=axes)


@register_adapter(_OURS + "batch.BatchNorm", _OURS + "group.LayerNorm", _OURS + "group.InstanceNorm")
def _ours_plain(module: nn.Module) -> Known:
    family = type(module).__name__.removesuffix("Norm").lower()
    return _of(module, _number(module, "channels"), layout="own", family=family)


@register_adapter(_OURS + "group.GroupNorm")
def _ours_group(module: nn.Module) -> Known:
    family = f"group:size={_number(module, 'group_size')}"
    return _of(module, _number(module, "channels"), layout="own", family=family)


@register_adapter(_OURS + "evonorm.EvoNormB0", _OURS + "evonorm.EvoNormS0",
                  "timm.layers.filter_response_norm.FilterResponseNormTlu2d", "timm.layers.inplace_abn.InplaceAbn",
                  *(f"timm.layers.evo_norm.EvoNorm2d{k}" for k in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2",
                                                                   "S2a")))  # fmt: skip
def _own_nonlinearity(module: nn.Module) -> Known:
    return Known(0, refused="computes its own activation in one formula with the norm: there is none to keep")


@register_adapter("timm.layers.grn.GlobalResponseNorm")
def _global_response(module: nn.Module) -> Known:
    return Known(0, refused="gates the channels against each other inside a block; it does not stand in a norm slot")
