"""CIFAR-10 and CIFAR-100 from their unpacked archives: the binary version, or the Python version read without trust."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerscope.data import places
from layerscope.data.images import Images
from layerscope.errors import DataError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    """How one of the two data sets lies on disk."""

    classes: int
    binary_folder: str
    python_folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int
    """Label bytes before the pixels of a binary record; the last of them is the class."""
    label_key: bytes

    def files(self, split: str) -> tuple[str, ...]:
        return {"train": self.train, "test": self.test, "all": self.train + self.test}[split]


_LAYOUTS = {
    "cifar10": _Layout(
        10,
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        1,
        b"labels",
    ),
    "cifar100": _Layout(100, "cifar-100-binary", "cifar-100-python", ("train",), ("test",), 2, b"fine_labels"),
}


def cifar(name: str, split: str, root: str | Path | None) -> Images:
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images, 32 x 32, colour.

    Raises:
        DataError: not found (and where it was looked for) or damaged.
    """
    layout = _LAYOUTS[name]
    files = layout.files(split)
    looked = places.candidates(root, (layout.binary_folder, layout.python_folder, ""))
    for folder in looked:
        if all((folder / f"{file}.bin").is_file() for file in files):
            parts = [_read_binary(folder / f"{file}.bin", layout) for file in files]
            break
        if all((folder / file).is_file() for file in files):
            parts = [_read_python(folder / file, layout) for file in files]
            break
    else:
        raise places.not_found(
            name,
            looked,
            f"Unpack its binary or Python archive and set {places.ENVIRONMENT} to the folder that holds "
            f"{layout.binary_folder} or {layout.python_folder}",
        )
    return Images(name, np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts]), layout.classes)


def _read_binary(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    raw = np.fromfile(path, np.uint8)
    record = layout.label_bytes + _PIXELS
    if not len(raw) or len(raw) % record:
        raise DataError(f"{path} is cut off: {len(raw)} bytes are not whole records of {record}; unpack it again")
    rows = raw.reshape(-1, record)
    return rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32), rows[:, layout.label_bytes - 1].astype(np.int64)


def _read_python(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with path.open("rb") as file:
            stored = _ArraysOnly(file, encoding="bytes").load()
        pixels, y = np.asarray(stored[b"data"]), np.asarray(stored[layout.label_key], np.int64)
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except (EOFError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path} is damaged or no CIFAR batch ({type(error).__name__}: {error})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape != (len(y), _PIXELS):
        raise DataError(
            f"{path}: expected {len(y)} rows of {_PIXELS} bytes, got {pixels.dtype} of shape {pixels.shape}"
        )
    return pixels.reshape(-1, 3, 32, 32), y


def _latin1(text: str | bytes, encoding: str | bytes = "latin1") -> bytes:
    """What ``_codecs.encode`` does in pickled arrays, and nothing else that it could do."""
    if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
        raise pickle.UnpicklingError("it encodes text in an unexpected way")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can make numpy arrays and plain containers and call nothing else.

    A pickle file is a program. These files come from anywhere, so the four names that pickled arrays need are looked up
    in a table, and every other name is refused.
    """

    # The function that pickled arrays name; its module has moved between numpy versions.
    _rebuild = np.empty(0).__reduce__()[0]
    _table: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed, and a ClassVar for pickle's C base gains nothing
        ("numpy.core.multiarray", "_reconstruct"): _rebuild,
        ("numpy._core.multiarray", "_reconstruct"): _rebuild,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._table[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks to run {module}.{name}, which a data file has no reason to do; do not trust this file"
            ) from None
