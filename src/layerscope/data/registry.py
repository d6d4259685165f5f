"""From a data spec, tensors or an iterable of batches to a checked :class:`Dataset`, and seeded batches from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerscope.data import bundled, cifar, folders, idx
from layerscope.data.catalogue import arguments
from layerscope.data.dataset import Dataset
from layerscope.data.given import describe
from layerscope.data.images import Images
from layerscope.errors import DataError, did_you_mean
from layerscope.spec import Spec

Source = str | Spec | Dataset | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]

_SPLITS = ("train", "test", "all")
_ASKED = ("size", "pad", "channels", "limit")


def load(name: str | Spec, split: str = "train", root: str | Path | None = None) -> Dataset:
    """A data set by name, whole, in memory.

    Args:
        name: such as ``digits:size=32,channels=3``; see :func:`layerscope.data.info`.
        split: ``train``, ``test`` or ``all`` (both, in this order).
        root: folder to look in first; after it come the folder named by the environment variable ``LAYERSCOPE_DATA``,
            the cache folder, and where the system's packages put data sets.

    Raises:
        DataError: unknown, not found (the message says where it was looked for), damaged.
    """
    opened = _open(name, split, root)
    return opened if isinstance(opened, Dataset) else opened.take()


def batch(
    source: Source, size: int, seed: int = 0, split: str = "train", *, at_least: int | None = None
) -> tuple[Tensor, Tensor]:
    """``size`` different samples, drawn evenly without replacement; the same ones for the same seed.

    Args:
        source: a name, a :class:`Dataset`, tensors ``(x, y)``, or an iterable of ``(x, y)`` batches. From an iterable
            come its first ``size`` samples: its order is its own.
        size: samples to draw.
        seed: of the draw.
        split: of a data set given by name.
        at_least: take as many as there are where there are fewer than ``size``, but no fewer than this.

    Returns:
        ``x`` [size, ...] and ``y`` [size].

    Raises:
        DataError: there are fewer than ``size`` samples, or whatever :func:`load` raises.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataError(f"a batch of size {size!r}; expected a whole number of at least 1")
    if not isinstance(source, str | Spec | Dataset) and not _is_pair(source):
        gathered = _gather(source, size)
        return gathered.x, gathered.y
    opened = _open(source, split, None) if isinstance(source, str | Spec) else as_dataset(source)
    if at_least is not None:
        size = max(at_least, min(size, len(opened)))
    if size > len(opened):
        raise DataError(
            f"{opened.name} ({split}) has {len(opened)} samples, fewer than the {size} asked for: lower the batch size"
        )
    taken = opened.take(torch.randperm(len(opened), generator=torch.Generator().manual_seed(seed))[:size])
    return taken.x, taken.y


def as_dataset(source: Source, *, split: str = "train", classes: int | None = None, name: str = "data") -> Dataset:
    """Whatever can be a data set as a :class:`Dataset`.

    Args:
        source: a name, a Dataset, tensors ``(x, y)``, or an iterable of ``(x, y)`` batches, which is read to its end.
        split: of a data set given by name.
        classes: number of classes of tensors and iterables; by default the largest label + 1.
        name: what to call tensors and iterables.

    Raises:
        DataError: as in :func:`load` and :class:`Dataset`.
    """
    if isinstance(source, str | Spec):
        return load(source, split)
    if isinstance(source, Dataset):
        return source
    if _is_pair(source):
        return _from_tensors(*source, classes=classes, name=name)
    return _gather(source, None, classes=classes, name=name)


def _open(name: str | Spec, split: str, root: str | Path | None) -> Images | folders.Folder | Dataset:
    if split not in _SPLITS:
        raise DataError(f"no split {split!r}: {did_you_mean(split, _SPLITS)}")
    spec, options = arguments(name)
    opened = _read(spec.name, split, root, dict(options))
    if isinstance(opened, Images):
        opened = opened.asked(**{key: int(options.get(key, 0)) for key in _ASKED})
    elif spec.name == "npz":
        opened = _as_it_is(opened, spec)
    return replace(opened, name=str(spec))


def _read(name: str, split: str, root: str | Path | None, options: dict[str, Any]) -> Images | folders.Folder | Dataset:
    if name == "digits":
        return bundled.digits(split)
    if name == "text":
        return bundled.text(split, **options)
    if name == "gaussian":
        return bundled.gaussian(split, **options)
    if name == "fashion-mnist":
        return idx.fashion_mnist(split, root, options["download"])
    if name in ("cifar10", "cifar100"):
        return cifar.cifar(name, split, root)
    if name == "imagefolder":
        return folders.imagefolder(split, root, **options)
    return folders.npz(split, root, path=options["path"])


def _as_it_is(data: Any, spec: Spec) -> Dataset:
    """Float arrays of the user's own: whatever they are, it is not ours to resize them."""
    options = spec.kwargs
    if changed := [key for key in ("size", "pad", "channels") if options.get(key)]:
        raise DataError(f"{spec}: {changed[0]} works on byte images; x holds floats, which are used as they are")
    limit = int(options.get("limit", 0)) or None
    taken: Dataset = data.take(slice(limit))
    return taken


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple | list) and len(source) == 2 and all(isinstance(part, Tensor) for part in source)


def _from_tensors(x: Tensor, y: Tensor, *, classes: int | None, name: str) -> Dataset:
    if classes is None:
        # At least 1, so that an empty or negative y meets the checks of Dataset and not an error of max().
        classes = max(int(y.max()) + 1, 1) if y.numel() and not y.is_floating_point() else 1
    return Dataset(name, x, y, classes)


def _gather(batches: Iterable[Any], size: int | None, *, classes: int | None = None, name: str = "data") -> Dataset:
    if not isinstance(batches, Iterable):
        raise DataError(
            f"{type(batches).__name__} is no data: expected a name, a Dataset, tensors (x, y) or batches of (x, y)"
        )
    xs, ys, have = list[Tensor](), list[Tensor](), 0
    for item in batches:
        if not isinstance(item, Sequence) or not _is_pair(item):
            raise DataError(f"the iterable gave {describe(item)}; expected batches (x, y) of two tensors")
        xs.append(item[0])
        ys.append(item[1])
        have += len(item[0])
        if size is not None and have >= size:
            break
    if not xs or (size is not None and have < size):
        raise DataError(f"the iterable gave {have} samples, fewer than the {size or 1} asked for")
    shapes = {tuple(x.shape[1:]) for x in xs}
    if len(shapes) > 1:
        raise DataError(f"the iterable gave samples of different shapes: {sorted(shapes)}")
    return _from_tensors(torch.cat(xs)[:size], torch.cat(ys)[:size], classes=classes, name=name)
