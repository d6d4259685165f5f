"""Where a network comes from: a name, a file, a function or a module object, with a norm of your choice.

::

    from layerscope import sources

    built = sources.build("timm:resnet18", "group:size=8", in_shape=(3, 64, 64), classes=10, seed=0)
    built.module, built.label, built.notes      # a torch.nn.Module, "timm:resnet18", what was adapted on the way
    sources.build("resnet56", "batch"); sources.build("train.py:make_net"); sources.build(my_module, "layer")

Reference nets take the norm while they are built; everything else gets it by :mod:`layerscope.surgery`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.sources.factories import data_from as data_from
    from layerscope.sources.networks import AS_IS as AS_IS
    from layerscope.sources.networks import Built as Built
    from layerscope.sources.networks import build as build
    from layerscope.sources.zoo import import_torchvision as import_torchvision

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "build": "networks",
        "Built": "networks",
        "AS_IS": "networks",
        "data_from": "factories",
        "import_torchvision": "zoo",
    },
)
