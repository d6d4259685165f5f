"""A data set in memory: samples, labels, number of classes, and the checks that every set passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerscope.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and labels as tensors, checked once when made.

    Raises:
        DataError: on making one from tensors of the wrong shape or type, with NaN or infinite samples, or with labels
            that are not in ``0 .. classes - 1``.
    """

    name: str
    x: Tensor
    """float [N, ...]; images [N, C, H, W] in [-1, 1]. Or int64 [N, T]: numbers of tokens."""
    y: Tensor
    """int64 [N], or [N, T] with one class for every token."""
    classes: int

    def __post_init__(self) -> None:
        check(self.name, self.x, self.y, self.classes)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} x {tuple(self.in_shape)}, {self.classes} classes)"

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def take(self, index: Tensor | slice | Sequence[int]) -> Dataset:
        """The samples at ``index``, in that order."""
        return Dataset(self.name, self.x[index], self.y[index], self.classes)


def check(name: str, x: Tensor, y: Tensor, classes: int) -> None:
    """Raise a DataError that says what is wrong with these samples and labels, if anything is."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise DataError(f"{name}: expected two tensors (x, y), got {type(x).__name__} and {type(y).__name__}")
    if x.ndim < 2 or len(x) == 0:
        raise DataError(f"{name}: x has shape {tuple(x.shape)}; expected [samples, ...] with at least one sample")
    tokens = x.dtype == torch.int64 and x.ndim == 2
    if not x.is_floating_point() and not tokens:
        raise DataError(
            f"{name}: x holds {_word(x)} values; networks take floats: scale images to [-1, 1], "
            "for bytes  x.float() / 127.5 - 1; tokens are int64 [samples, tokens]"
        )
    if tuple(y.shape) != (len(x),) and not (tokens and y.shape == x.shape):
        each = f", or {list(x.shape)}, one a token" if tokens else ""
        raise DataError(f"{name}: y has shape {tuple(y.shape)}; expected [{len(x)}], one class number a sample{each}")
    if y.dtype != torch.int64:
        raise DataError(f"{name}: y holds {_word(y)} values; expected int64 class numbers: use  y.long()")
    if bad := int((~torch.isfinite(x)).flatten(1).any(1).sum()):
        raise DataError(f"{name}: {bad} of {len(x)} samples hold NaN or infinite values; remove or mend them")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{name}: labels run from {low} to {high}; with {classes} classes they must be 0 .. {classes - 1}"
        )


def _word(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
