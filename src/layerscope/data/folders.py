"""The user's own data: a folder of images per class, or arrays in an ``.npz`` file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerscope.data.dataset import Dataset
from layerscope.data.images import Images
from layerscope.errors import DataError, MissingExtraError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, eq=False)
class Folder:
    """Images on disk that are read only when they are taken, so that a batch of 64 reads 64 files."""

    name: str
    paths: tuple[Path, ...]
    y: NDArray[np.int64]
    classes: int
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor | None = None) -> Dataset:
        """The images at ``index`` (all by default) as network input."""
        picked = range(len(self)) if index is None else index.tolist()
        pixels = np.stack([_read_image(self.paths[i], self.size) for i in picked])
        images = Images(self.name, pixels, self.y[list(picked)], self.classes)
        return replace(images, channels=self.channels).take()


def imagefolder(split: str, root: str | Path | None, *, path: str, size: int, channels: int, limit: int) -> Folder:
    """Images of ``path/<class>/``, or of ``path/train/<class>/`` and ``path/test`` (or ``val``) where ``train`` exists.

    Classes are numbered in the alphabetical order of their folders. Without a ``train`` folder every fifth image of
    a class is for testing. Images are cut square about their centre and resized to ``size``.

    Raises:
        DataError: no such folder, no class folders, a class without images, or an unreadable image.
        MissingExtraError: Pillow is not installed.
    """
    base = _path(path, root, "imagefolder", "imagefolder:path=/my/images")
    splits = {name: base / name for name in ("train", "test", "val") if (base / name).is_dir()}
    if "train" not in splits:
        found = [(_class_files(base, part=split), base)]
    else:
        splits["test"] = splits.get("test") or splits.get("val") or base / "test"
        found = [(_class_files(splits[s]), splits[s]) for s in (("train", "test") if split == "all" else (split,))]
    names = sorted({name for files, _ in found for name in files})
    pairs = [(p, names.index(name)) for files, _ in found for name, paths in files.items() for p in paths]
    # Spread the classes, so that the first `limit` images hold all of them.
    order = np.random.default_rng(0).permutation(len(pairs))[: limit or None]
    return Folder(
        "imagefolder",
        tuple(pairs[i][0] for i in order),
        np.array([pairs[i][1] for i in order], np.int64),
        len(names),
        size,
        channels or 3,
    )


def npz(split: str, root: str | Path | None, *, path: str) -> Images | Dataset:
    """Arrays ``x`` and ``y`` of an ``.npz`` file; every fifth sample tests, unless it has ``x_test`` and ``y_test``.

    Bytes become network input like images ([N, H, W] or [N, C, H, W]); floats are taken as they are.

    Raises:
        DataError: no such file, not an ``.npz`` file, arrays missing or of the wrong type.
    """
    file = _path(path, root, "npz", "npz:path=/my/data.npz")
    x, y = _load_npz(file, split)
    if y.ndim != 1 or len(x) != len(y) or not np.issubdtype(y.dtype, np.integer) or not len(y):
        raise DataError(
            f"{file}: x {x.shape}, y {y.shape} {y.dtype}; expected x [N, ...] and whole-number labels y [N]"
        )
    labels, classes = y.astype(np.int64), int(y.max()) + 1
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise DataError(f"{file}: x holds {x.dtype}; expected uint8 (images, 0..255) or floats (used as they are)")
        return Dataset("npz", torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels), max(classes, 1))
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4:
        raise DataError(f"{file}: x has shape {x.shape}; expected images [N, H, W] or [N, channels, H, W]")
    return Images("npz", x, labels, classes)


def _path(path: str, root: str | Path | None, name: str, example: str) -> Path:
    if not path and root is None:
        raise DataError(f"{name} needs to know where: write  {example}")
    found = (Path(root) / path if root is not None else Path(path)).expanduser()
    if not found.exists():
        raise DataError(f"{name}: {found} does not exist")
    return found


def _class_files(folder: Path, part: str = "all") -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DataError(f"imagefolder: {folder} is not a folder")
    found = {}
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not _is_litter(p)):
        files = sorted(p for p in sub.rglob("*") if p.suffix.lower() in _SUFFIXES and not _is_litter(p))
        if not files:
            raise DataError(f"imagefolder: class folder {sub} holds no images")
        found[sub.name] = [p for i, p in enumerate(files) if part == "all" or (part == "test") == (i % 5 == 4)]
    if not found:
        raise DataError(f"imagefolder: {folder} holds no class folders; expected {folder}/<class>/<image>.png")
    if not any(found.values()):
        raise DataError(
            f"imagefolder: {folder} has too few images to keep some for the split {part!r} (every fifth tests)"
        )
    return found


def _is_litter(path: Path) -> bool:
    """What file managers, notebooks and archives leave behind, such as ``._1.png`` and ``.ipynb_checkpoints``."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _read_image(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtraError("Pillow", "zoo", "reading image files") from None
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
            return np.asarray(fitted, np.uint8).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"imagefolder: {path} cannot be read as an image ({error})") from None


def _load_npz(file: Path, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        # Opened here, because numpy leaves the file open when the archive is broken.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("x", "y", "x_test", "y_test") if key in stored.files}
            names = stored.files
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not a readable .npz file ({error})") from None
    if "x" not in arrays or "y" not in arrays:
        raise DataError(f"{file} holds {', '.join(names) or 'nothing'}; expected arrays named x and y")
    x, y = arrays["x"], arrays["y"]
    if "x_test" in arrays and "y_test" in arrays:
        tests = arrays["x_test"], arrays["y_test"]
        if split == "all":
            return np.concatenate([x, tests[0]]), np.concatenate([y, tests[1]])
        return (x, y) if split == "train" else tests
    if split == "all":
        return x, y
    is_test = np.arange(len(x)) % 5 == 4
    if len(x) != len(y):
        return x, y
    return (x[is_test], y[is_test]) if split == "test" else (x[~is_test], y[~is_test])
