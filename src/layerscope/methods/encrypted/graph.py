"""The integer network: a list of exact integer operations that every backend must reproduce bit for bit.

Every value has the shape [N, C, H, W]; a vector of F features is [N, F, 1, 1] and a linear layer a 1 x 1 convolution.
Arrays are numpy int64, so that a server can run a graph without torch.

A value stands for the float ``scale[c] * code + offset[c]``; see :class:`Value`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool: (height, width) pairs."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output map."""
        sizes = []
        for n, k, s, p, d in zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True):
            sizes.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        return sizes[0], sizes[1]

    @property
    def taps(self) -> int:
        """Positions of one window."""
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Op:
    """One operation: its name (module path), the indices of its inputs, and the shape of its output."""

    kind: ClassVar[str] = ""
    name: str
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class Input(Op):
    """Codes 0 .. 2^bits - 1 from the client."""

    kind: ClassVar[str] = "input"
    bits: int


@dataclass(frozen=True)
class Conv(Op):
    """``acc = sum q * code + bias``; q in {0, +-2^e}; padded taps contribute nothing.

    ``bias`` is [O, 1, 1], or [O, H, W] where an offset of the input makes the border differ from the interior.
    With ``truncating`` the terms are ``code >> (E - e)`` instead, E the channel's largest exponent: the shift that the
    paper draws, which drops low bits before the sum.
    """

    kind: ClassVar[str] = "conv"
    q: Ints
    bias: Ints
    window: Window
    groups: int = 1
    truncating: bool = False

    @property
    def fan_in(self) -> int:
        """Weights of one output channel, zeros included."""
        return int(np.prod(self.q.shape[1:]))


@dataclass(frozen=True)
class Requant(Op):
    """``min(max(acc, 0) >> shift[c], 2^bits - 1)``: the exact ReLU, the rescaling and the clip in one."""

    kind: ClassVar[str] = "requant"
    shift: Ints
    bits: int


@dataclass(frozen=True)
class Sign(Op):
    """1 where acc >= 0, else 0; stands for +1 and -1."""

    kind: ClassVar[str] = "sign"


@dataclass(frozen=True)
class MaxPool(Op):
    """Largest code of a window; padded taps never win."""

    kind: ClassVar[str] = "maxpool"
    window: Window


@dataclass(frozen=True)
class SumPool(Op):
    """Sum over a window; the division by the window's size lives in the value's scale."""

    kind: ClassVar[str] = "sumpool"
    window: Window


@dataclass(frozen=True)
class Add(Op):
    """``(x << left[c]) + (y << right[c])``: a residual sum after aligning the scales."""

    kind: ClassVar[str] = "add"
    left: Ints
    right: Ints


@dataclass(frozen=True)
class Concat(Op):
    """Channels side by side."""

    kind: ClassVar[str] = "concat"


@dataclass(frozen=True)
class Flatten(Op):
    """[C, H, W] -> [C H W, 1, 1]."""

    kind: ClassVar[str] = "flatten"


KINDS: dict[str, type[Op]] = {
    cls.kind: cls for cls in (Input, Conv, Requant, Sign, MaxPool, SumPool, Add, Concat, Flatten)
}


@dataclass(frozen=True)
class Value:
    """What is known of an operation's output: sound integer bounds and what its codes stand for, per channel."""

    lo: Ints
    """[C]: no input whatsoever makes a code smaller."""
    hi: Ints
    """[C]: no input whatsoever makes a code larger."""
    scale: Floats
    """[C]: float = scale * code + offset."""
    offset: Floats

    @property
    def signed(self) -> bool:
        """Whether any code can be negative."""
        return bool(self.lo.min() < 0)

    @property
    def width(self) -> int:
        """Bits of the smallest word that holds every channel: two's complement if signed, else unsigned."""
        return width_of(int(self.lo.min()), int(self.hi.max()))


def width_of(lo: int, hi: int) -> int:
    """Bits that hold every integer of [lo, hi]; two's complement if ``lo < 0``.

    >>> width_of(0, 15), width_of(-1, 15), width_of(-16, 3), width_of(0, 0)
    (4, 5, 5, 1)
    """
    if lo >= 0:
        return max(1, int(hi).bit_length())
    return 1 + max(int(hi).bit_length() if hi > 0 else 0, int(-lo - 1).bit_length())


@dataclass(frozen=True)
class Graph:
    """An integer network in execution order; the last operation's output is the answer."""

    ops: tuple[Op, ...]
    values: tuple[Value, ...]

    @property
    def input(self) -> Input:
        """The one input."""
        op = self.ops[0]
        assert isinstance(op, Input)
        return op

    @property
    def output(self) -> Value:
        """Bounds and scales of the answer."""
        return self.values[-1]

    def consumers(self, index: int) -> list[int]:
        """Operations that read output ``index``."""
        return [i for i, op in enumerate(self.ops) if index in op.inputs]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form: same integers, same fingerprint, whatever made them."""
        structure, arrays = self.to_parts()
        digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
        for key in sorted(arrays):
            digest.update(key.encode() + np.ascontiguousarray(arrays[key]).tobytes())
        return digest.hexdigest()

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """A JSON structure and named arrays; :meth:`from_parts` is the inverse."""
        arrays: dict[str, NDArray[Any]] = {}
        ops = []
        for index, (op, value) in enumerate(zip(self.ops, self.values, strict=True)):
            record: dict[str, Any] = {"kind": op.kind}
            for f in fields(op):
                item = getattr(op, f.name)
                if isinstance(item, np.ndarray):
                    arrays[f"{index}.{f.name}"] = item.astype("<i8")
                elif isinstance(item, Window):
                    record[f.name] = [list(item.kernel), list(item.stride), list(item.padding), list(item.dilation)]
                else:
                    record[f.name] = list(item) if isinstance(item, tuple) else item
            for name in ("lo", "hi"):
                arrays[f"{index}.value.{name}"] = getattr(value, name).astype("<i8")
            for name in ("scale", "offset"):
                arrays[f"{index}.value.{name}"] = getattr(value, name).astype("<f8")
            ops.append(record)
        return {"ops": ops, "shapes": {k: list(v.shape) for k, v in arrays.items()}}, arrays

    @classmethod
    def from_parts(cls, structure: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Graph:
        """Rebuild a graph from :meth:`to_parts`."""
        ops: list[Op] = []
        values: list[Value] = []
        for index, record in enumerate(structure["ops"]):
            kind = KINDS[record["kind"]]
            kwargs: dict[str, Any] = {}
            for f in fields(kind):
                key = f"{index}.{f.name}"
                if key in arrays:
                    kwargs[f.name] = arrays[key].astype(np.int64)
                elif f.name == "window":
                    kwargs[f.name] = Window(*(tuple(pair) for pair in record["window"]))
                else:
                    item = record[f.name]
                    kwargs[f.name] = tuple(item) if isinstance(item, list) else item
            ops.append(kind(**kwargs))
            values.append(
                Value(
                    arrays[f"{index}.value.lo"].astype(np.int64),
                    arrays[f"{index}.value.hi"].astype(np.int64),
                    arrays[f"{index}.value.scale"].astype(np.float64),
                    arrays[f"{index}.value.offset"].astype(np.float64),
                )
            )
        return cls(tuple(ops), tuple(values))
