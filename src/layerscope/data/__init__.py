"""Data sets by name, bundled or from disk, as plain tensors; the same batch for the same seed.

``digits`` (8 x 8 handwritten digits, UCI) is shipped inside the package, so that the main job needs no network.
Nothing is downloaded unless ``download=true`` stands in the spec.

    >>> from layerscope import data
    >>> data.info("digits").summary
    '1,797 handwritten digits, 8 x 8 grey, 10 classes; shipped with the package'
    >>> x, y = data.batch("digits:size=32,channels=3", 64, seed=0)  # doctest: +SKIP

Importing this room imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.data.catalogue import DataInfo as DataInfo
    from layerscope.data.catalogue import info as info
    from layerscope.data.catalogue import names as names
    from layerscope.data.catalogue import parse as parse
    from layerscope.data.dataset import Dataset as Dataset
    from layerscope.data.given import gather as gather
    from layerscope.data.given import repeated as repeated
    from layerscope.data.registry import as_dataset as as_dataset
    from layerscope.data.registry import batch as batch
    from layerscope.data.registry import load as load

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DataInfo": "catalogue",
        "info": "catalogue",
        "names": "catalogue",
        "parse": "catalogue",
        "Dataset": "dataset",
        "gather": "given",
        "repeated": "given",
        "as_dataset": "registry",
        "batch": "registry",
        "load": "registry",
    },
)
