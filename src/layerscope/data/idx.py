"""Fashion-MNIST from its IDX files: Debian's package, torchvision's layout, or any folder that holds them."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerscope.data import places
from layerscope.data.images import Images
from layerscope.errors import DataError

_FOLDERS = ("", "fashion-mnist", "FashionMNIST/raw", "raw")
_SYSTEM = ("/usr/share/datasets/fashion-mnist", "/usr/share/dataset-fashion-mnist")
_URLS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
#: Of the unpacked files: Debian and Zalando pack the same bytes differently.
_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_STEMS = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}


def fashion_mnist(split: str, root: str | Path | None, download: bool) -> Images:
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28, grey.

    Raises:
        DataError: not found (and where it was looked for), not downloadable, or damaged.
    """
    folder = _folder(root, download)
    parts = [
        (
            read_idx(_file(folder, f"{stem}-images-idx3-ubyte"), 3),
            read_idx(_file(folder, f"{stem}-labels-idx1-ubyte"), 1),
        )
        for stem in _STEMS[split]
    ]
    for images, labels in parts:
        if len(images) != len(labels):
            raise DataError(
                f"{folder}: {len(images)} images but {len(labels)} labels; the files do not belong together"
            )
    pixels = np.concatenate([images for images, _ in parts])[:, None]
    return Images("fashion-mnist", pixels, np.concatenate([y for _, y in parts]).astype(np.int64), 10)


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """An IDX file of bytes with ``ndim`` axes, gzipped or not.

    The format: two zero bytes, the type (8 = unsigned byte), the number of axes, each axis as a big-endian 32-bit
    number, then the values in C order.

    Raises:
        DataError: damaged, cut off, of another type, or with another number of axes.
    """
    try:
        raw = _unpacked(path, path.stat().st_mtime_ns)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged and cannot be read ({error}); fetch it again") from None
    header = 4 + 4 * ndim
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, ndim)):
        raise DataError(
            f"{path} is no IDX file of bytes with {ndim} axes: it starts with {raw[:4].hex(' ') or 'nothing'}"
        )
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    if len(raw) != header + math.prod(shape):
        raise DataError(
            f"{path} is cut off or overlong: it announces {math.prod(shape)} values of shape {shape} "
            f"and holds {len(raw) - header}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


@lru_cache(maxsize=4)
def _unpacked(path: Path, changed: int) -> bytes:
    """The file's content. Kept, because a study reads the same file in every trial and unpacking it takes 0.3 s."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _folder(root: str | Path | None, download: bool) -> Path:
    looked = places.candidates(root, _FOLDERS, _SYSTEM)
    for folder in looked:
        if all(_exists(folder, file) for file in _SHA256):
            return folder
    if download:
        target = (Path(root).expanduser() if root is not None else places.cache()) / "fashion-mnist"
        places.download("fashion-mnist", _URLS, _SHA256, target)
        return target
    raise places.not_found(
        "fashion-mnist",
        looked,
        "Write fashion-mnist:download=true (30 MB), install Debian's package dataset-fashion-mnist, or set "
        f"{places.ENVIRONMENT} to a folder that holds its four files",
    )


def _exists(folder: Path, file: str) -> bool:
    return (folder / file).is_file() or (folder / file.removesuffix(".gz")).is_file()


def _file(folder: Path, stem: str) -> Path:
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"
