"""What an operation can be to a set of active rows: the vocabulary of the propagation table.

Source: the table is ours; arXiv 2310.07782 applies one mask to every convolution and leaves everything else alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor, fx, nn

from layerscope.methods.focus.levels import Geometry


class Unsupported(Exception):
    """This operation cannot run on rows; the message says why."""


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution, Linear over channels, or (``groups == channels``, one tap) a scale and shift per channel."""

    weight: Tensor
    bias: Tensor
    geometry: Geometry
    groups: int = 1
    activation: str = "none"

    @property
    def is_depthwise(self) -> bool:
        """One input channel and one output channel per group."""
        return self.groups > 1 and self.weight.shape[:2] == (self.groups, 1)

    def then_affine(self, scale: Tensor, shift: Tensor) -> Conv:
        """The same layer followed by y * scale + shift."""
        return replace(self, weight=self.weight * scale.reshape(-1, 1, 1, 1), bias=self.bias * scale + shift)


@dataclass(frozen=True, eq=False)
class Affine:
    """y = x * scale + shift per channel: BatchNorm in eval mode, layer scale."""

    scale: Tensor
    shift: Tensor

    def as_conv(self) -> Conv:
        """The same as a depthwise layer with one tap."""
        return Conv(self.scale.reshape(-1, 1, 1, 1), self.shift, Geometry((1, 1)), groups=self.scale.numel())


@dataclass(frozen=True)
class Act:
    """An elementwise function; ``kind`` is one of the fused names, or None where only the callable is known."""

    kind: str | None
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pool:
    """Max or mean pooling."""

    geometry: Geometry
    mean: bool = False
    count_padding: bool = True


@dataclass(frozen=True)
class GlobalMean:
    """Mean over the whole grid: leaves rows, with the dense divisor H * W."""

    keepdim: bool
    maximum: bool = False
    """The maximum instead; inactive positions take part with their fill."""


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over the channels of each position."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Same:
    """Changes nothing in eval mode."""


@dataclass(frozen=True)
class Pad:
    """Zeros around the grid, read by convolutions only: they take it into their own padding."""

    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Permute:
    """Moves the channel axis: nothing happens to rows."""

    to_last: bool


@dataclass(frozen=True)
class Add:
    """Sum of two values on one set."""


@dataclass(frozen=True)
class Times:
    """Product of two values on one set; one channel broadcasts."""


@dataclass(frozen=True)
class Slice:
    """Some neighbouring channels."""

    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Order:
    """Channels in another order: channel shuffle."""

    order: Tensor


@dataclass(frozen=True)
class Part:
    """A node that only the recognised node after it reads: nothing is computed here."""


@dataclass(frozen=True)
class SizeOf:
    """The size of the dense map that the rows stand for, or one axis of it: a plain number, no rows."""

    axis: int | None


@dataclass(frozen=True)
class ScaleBy:
    """Rows times one vector per image (squeeze-and-excitation); ``vector`` is the argument position of the vector."""

    vector: int


@dataclass(frozen=True)
class Concat:
    """Concatenation over channels of values on one set."""


Kind = (
    Conv | Affine | Act | Pool | GlobalMean | Norm | Same | Pad | Permute | Add | Times | Slice | Order | Part | SizeOf
    | ScaleBy | Concat
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Op:
    """One recognised node: what it does and which nodes hold its rows."""

    kind: Kind
    rows: tuple[fx.Node, ...]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Context:
    """What recognising needs to know of the traced network."""

    modules: dict[str, nn.Module]
    shapes: dict[fx.Node, tuple[int, ...]]
    channels_last: dict[fx.Node, bool]
    """Nodes that are held as rows, and whether their channel axis is the last one."""
    constants: dict[fx.Node, Tensor]
    """Values of get_attr nodes."""
    plain: dict[fx.Node, object]
    """Values in the example's pass that are no tensors: sizes, numbers, types."""
    whole: dict[str, str]
    """Submodules that torch.fx could not trace, with the reason."""
