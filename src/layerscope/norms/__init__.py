"""The layer zoo: every normalization choice under one name and one grammar, one file per family.

::

    from layerscope import norms

    layer = norms.build("group:size=8", channels=64)        # an nn.Module for [N, C], [N, S, C], [N, C, H, W]
    r = norms.recipe("frn")                                 # what the choice puts into all three slots
    block = nn.Sequential(r.weight(nn.Conv2d(3, 64, 3, bias=r.needs_bias)), r.norm(64), r.activation(64))
    norms.names(); norms.info("group").params               # lists, without importing torch

Papers and equations stand in the docstring of each layer; the choice of layers follows arXiv 2106.05956.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.norms.base import ChannelNorm as ChannelNorm
    from layerscope.norms.base import ChannelsFirst1d as ChannelsFirst1d
    from layerscope.norms.base import NormInputError as NormInputError
    from layerscope.norms.batch import BatchNorm as BatchNorm
    from layerscope.norms.calibration import recalibrate as recalibrate
    from layerscope.norms.evonorm import EvoNormB0 as EvoNormB0
    from layerscope.norms.evonorm import EvoNormS0 as EvoNormS0
    from layerscope.norms.facts import NormInfo as NormInfo
    from layerscope.norms.facts import Param as Param
    from layerscope.norms.frn import FilterResponseNorm as FilterResponseNorm
    from layerscope.norms.frn import ThresholdedLinearUnit as ThresholdedLinearUnit
    from layerscope.norms.ghost import GhostBatchNorm as GhostBatchNorm
    from layerscope.norms.group import GroupNorm as GroupNorm
    from layerscope.norms.group import InstanceNorm as InstanceNorm
    from layerscope.norms.group import LayerNorm as LayerNorm
    from layerscope.norms.grouping import nearest_divisor as nearest_divisor
    from layerscope.norms.mixture import MixtureNorm as MixtureNorm
    from layerscope.norms.mixture_channel import ChannelMixtureNorm as ChannelMixtureNorm
    from layerscope.norms.mixture_kinds import MixtureNorm1d as MixtureNorm1d
    from layerscope.norms.mixture_kinds import MixtureNorm2d as MixtureNorm2d
    from layerscope.norms.mixture_kinds import MixtureNorm3d as MixtureNorm3d
    from layerscope.norms.mode import ModeNorm as ModeNorm
    from layerscope.norms.pointwise import DynamicErf as DynamicErf
    from layerscope.norms.pointwise import DynamicTanh as DynamicTanh
    from layerscope.norms.pointwise import GlobalResponseNorm as GlobalResponseNorm
    from layerscope.norms.proxy import ProxyActivation as ProxyActivation
    from layerscope.norms.registry import adapt as adapt
    from layerscope.norms.registry import build as build
    from layerscope.norms.registry import info as info
    from layerscope.norms.registry import names as names
    from layerscope.norms.registry import parse as parse
    from layerscope.norms.registry import recipe as recipe
    from layerscope.norms.registry import register_norm as register_norm
    from layerscope.norms.renorm import BatchRenorm as BatchRenorm
    from layerscope.norms.rms import LayerNorm2d as LayerNorm2d
    from layerscope.norms.rms import RMSNorm as RMSNorm
    from layerscope.norms.rms import ScaleNorm as ScaleNorm
    from layerscope.norms.running import MeanNorm as MeanNorm
    from layerscope.norms.running import VarianceNorm as VarianceNorm
    from layerscope.norms.slots import Recipe as Recipe
    from layerscope.norms.switchable import SwitchableNorm as SwitchableNorm
    from layerscope.norms.weights import StandardizedActivation as StandardizedActivation

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "parse": "registry",
        "build": "registry",
        "names": "registry",
        "adapt": "registry",
        "register_norm": "registry",
        "info": "registry",
        "recipe": "registry",
        "NormInfo": "facts",
        "Param": "facts",
        "Recipe": "slots",
        "nearest_divisor": "grouping",
        "ChannelNorm": "base",
        "NormInputError": "base",
        "ChannelsFirst1d": "base",
        "BatchNorm": "batch",
        "GroupNorm": "group",
        "LayerNorm": "group",
        "InstanceNorm": "group",
        "MixtureNorm": "mixture",
        "MixtureNorm1d": "mixture_kinds",
        "MixtureNorm2d": "mixture_kinds",
        "MixtureNorm3d": "mixture_kinds",
        "ChannelMixtureNorm": "mixture_channel",
        "ModeNorm": "mode",
        "recalibrate": "calibration",
        "BatchRenorm": "renorm",
        "EvoNormB0": "evonorm",
        "EvoNormS0": "evonorm",
        "FilterResponseNorm": "frn",
        "ThresholdedLinearUnit": "frn",
        "GhostBatchNorm": "ghost",
        "GlobalResponseNorm": "pointwise",
        "DynamicTanh": "pointwise",
        "DynamicErf": "pointwise",
        "LayerNorm2d": "rms",
        "RMSNorm": "rms",
        "ScaleNorm": "rms",
        "MeanNorm": "running",
        "VarianceNorm": "running",
        "ProxyActivation": "proxy",
        "StandardizedActivation": "weights",
        "SwitchableNorm": "switchable",
    },
)
