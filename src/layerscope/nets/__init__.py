"""Small reference networks that take a norm: plain CNNs, CIFAR ResNets, a VGG, an MLP and a vision transformer.

They stand here so that a comparison, its tests and its benchmark need no other package. The plain CNNs and the ResNets
are those of Lubana, Dick and Tanaka, "Beyond BatchNorm" (NeurIPS 2021, arXiv 2106.05956); image size, channels, classes
and width are free.

    >>> from layerscope import nets
    >>> nets.names()[:3]
    ('cfg_10', 'cfg_20', 'cfg_40')
    >>> net = nets.build("resnet20:width=16,skipinit=true", norm="group:size=8")  # doctest: +SKIP

Importing this room imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.nets.catalogue import NetInfo as NetInfo
    from layerscope.nets.catalogue import info as info
    from layerscope.nets.catalogue import names as names
    from layerscope.nets.catalogue import parse as parse
    from layerscope.nets.registry import build as build

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "NetInfo": "catalogue",
        "info": "catalogue",
        "names": "catalogue",
        "parse": "catalogue",
        "build": "registry",
    },
)
