"""The data sets that need no disk and no network: ``digits`` and ``text``, which are shipped, and ``gaussian``."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from layerscope.data.dataset import Dataset
from layerscope.data.images import Images
from layerscope.errors import DataError

#: The last 360 digits of the file (20 %) are the test split, the rest trains.
_DIGITS_TRAIN = 1437

#: The last tenth of the text is the test split, the rest trains.
_TEXT_TRAIN = 0.9


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


def text(split: str, *, context: int, limit: int) -> Dataset:
    """Windows of a text as characters, for language models: each character is to foretell the next one.

    The Declaration of Independence and the Constitution of the United States, 54,590 characters of 74 kinds. A window
    starts every ``context / 4`` characters, so that windows overlap within a split and never across splits. See
    ``TEXT-NOTICE`` beside the file.

    Returns:
        ``x`` int64 [N, context], numbers of characters; ``y`` int64 [N, context], the characters one place further on.

    Raises:
        DataError: ``context`` is longer than the split.
    """
    written = files("layerscope.data").joinpath("text.txt").read_text(encoding="ascii")
    symbols = sorted(set(written))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    whole = torch.tensor([number[symbol] for symbol in written])
    cut = int(_TEXT_TRAIN * len(whole))
    part = {"train": whole[:cut], "test": whole[cut:], "all": whole}[split]
    if context >= len(part):
        raise DataError(f"text ({split}): context={context} is longer than its {len(part)} characters")
    windows = part.unfold(0, context + 1, max(1, context // 4))[: limit or None]
    return Dataset("text", windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), len(symbols))
