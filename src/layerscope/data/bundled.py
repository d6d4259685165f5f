"""The two data sets that need no disk and no network: ``digits``, shipped inside the package, and ``gaussian``."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from layerscope.data.dataset import Dataset
from layerscope.data.images import Images
from layerscope.errors import DataError

#: The last 360 digits of the file (20 %) are the test split, the rest trains.
_DIGITS_TRAIN = 1437


def digits(split: str) -> Images:
    """The test set of the UCI optical digits, 1,797 grey images of 8 x 8 pixels with 17 grey levels.

    Splits ``train`` (the first 1,437), ``test`` (the last 360) and ``all``. See ``DIGITS-NOTICE`` beside the file.
    """
    with files("layerscope.data").joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        pixels, y = stored["images"], stored["labels"].astype(np.int64)
    part = {"train": slice(0, _DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None), "all": slice(None)}[split]
    return Images("digits", pixels[part, None], y[part], 10, white=16)


def gaussian(split: str, *, shape: str, classes: int, samples: int, seed: int) -> Dataset:
    """Independent standard normal samples with labels that have nothing to do with them.

    Raises:
        DataError: ``shape`` is not of the form ``3x32x32``.
    """
    try:
        sizes = tuple(int(n) for n in shape.lower().split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise DataError(f"gaussian: shape={shape} is not a shape such as 3x32x32 or 256")
    # Splits differ, and so does each seed.
    generator = torch.Generator().manual_seed(3 * seed + ("train", "test", "all").index(split))
    x = torch.randn(samples, *sizes, generator=generator)
    y = torch.randint(classes, (samples,), generator=generator)
    return Dataset("gaussian", x, y, classes)
