"""How functional calls (``F.relu``, ``x + y``, ``x.flatten(1)``) become steps, and what to say of those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from layerscope.methods.encrypted.floatgraph import Step, StepOp
from layerscope.methods.encrypted.graph import Shape, Window

IDENTITY = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)

_STATISTIC = (
    "divides by a statistic of the encrypted activations",
    "use a batch norm, which is a constant scale at inference and folds away",
)
_SMOOTH = (
    "is not a ReLU: an integer network holds only ReLU, ReLU6, sign and max-pool",
    "replace it by nn.ReLU and train on",
)
_STATISTICS = ("GroupNorm", "LayerNorm", "InstanceNorm", "InstanceNorm2d", "LocalResponseNorm", "RMSNorm")
_CURVES = ("GELU", "SiLU", "ELU", "Tanh", "Sigmoid", "LeakyReLU", "Hardswish", "Softplus", "Mish")

#: class or function name -> (why not, what instead)
REMEDIES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_STATISTICS, _STATISTIC),
    **dict.fromkeys((*_CURVES, *(name.lower() for name in _CURVES)), _SMOOTH),
    "Softmax": ("is not needed on encrypted logits", "apply it after decryption"),
    "MultiheadAttention": ("multiplies ciphertexts and divides by a softmax", "use a convolutional network"),
    "Square": ("multiplies ciphertexts", "use nn.ReLU, or the polynomial baseline CkksNet"),
    "mul": ("multiplies two activations, or one by a parameter", "use a batch norm for constant gains"),
    "BatchNorm2d": ("keeps no running statistics", "train it with track_running_stats=True"),
}


@dataclass(frozen=True)
class Call:
    """One traced call: where it stands, what it reads, the shape of its result and its arguments."""

    name: str
    sources: tuple[int, ...]
    shape: Shape
    before: tuple[Shape, ...]
    """Shapes of the sources."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def get(self, place: int, name: str, default: Any) -> Any:
        """An argument by place or name."""
        return self.args[place] if len(self.args) > place else (self.kwargs or {}).get(name, default)

    def step(self, op: StepOp, kind: str, *, window: Window | None = None, cap: float | None = None) -> Step:
        """A step of this call."""
        sources = self.sources if op in ("add", "concat") else self.sources[:1]
        return Step(self.name, op, sources, self.shape, window=window, cap=cap, kind=kind)


Rule = Callable[[Call], "Step | str | None"]
"""A step, ``"identity"``, or None for what has no integer form."""


def pair(value: Any) -> tuple[int, int]:
    """A torch size argument as (height, width)."""
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _add(call: Call) -> Step | None:
    alike = len(call.sources) == 2 and len(set(call.before)) == 1
    return call.step("add", "add") if alike else None


def _concat(call: Call) -> Step | None:
    along_channels = call.get(1, "dim", 0) in (1, -3) and len({shape[1:] for shape in call.before}) == 1
    return call.step("concat", "cat") if along_channels else None


def _flatten(call: Call) -> Step | str | None:
    before = call.before[0]
    if call.shape[1:] != (1, 1) or call.shape[0] != before[0] * before[1] * before[2]:
        return "identity" if call.shape == before else None
    return "identity" if before[1:] == (1, 1) else call.step("flatten", "flatten")


def _pool_window(call: Call) -> Window:
    kernel, stride = pair(call.get(1, "kernel_size", None)), call.get(2, "stride", None)
    return Window(kernel, pair(stride) if stride else kernel, pair(call.get(3, "padding", 0)))


def _max_pool(call: Call) -> Step | None:
    plain = _pool_window(call)
    window = Window(plain.kernel, plain.stride, plain.padding, pair(call.get(4, "dilation", 1)))
    if window.out(*call.before[0][1:]) != call.shape[1:]:
        return None  # ceil_mode that adds a column
    return call.step("maxpool", "max_pool2d", window=window)


def _avg_pool(call: Call) -> Step | None:
    window = _pool_window(call)
    border = not call.get(5, "count_include_pad", True) and window.padding != (0, 0)
    if border or call.get(6, "divisor_override", None) or window.out(*call.before[0][1:]) != call.shape[1:]:
        return None
    return call.step("avgpool", "avg_pool2d", window=window)


def _adaptive(call: Call) -> Step | str | None:
    before, shape = call.before[0], call.shape
    if before[1:] == shape[1:]:
        return "identity"
    if before[1] % shape[1] or before[2] % shape[2]:
        return None
    kernel = (before[1] // shape[1], before[2] // shape[2])
    return call.step("avgpool", "adaptive_avg_pool2d", window=Window(kernel, kernel))


def _mean(call: Call) -> Step | None:
    dims, before = call.get(1, "dim", None), call.before[0]
    if dims is None or sorted(d % 4 for d in (dims if isinstance(dims, list | tuple) else [dims])) != [2, 3]:
        return None
    return call.step("avgpool", "mean", window=Window(before[1:], before[1:]))


def _subsample(call: Call) -> Step | None:
    """``x[:, :, ::2, ::2]``: a max-pool over one tap, which costs nothing."""
    key = call.get(1, "key", None)
    if not isinstance(key, tuple) or len(key) != 4 or any(not isinstance(k, slice) for k in key):
        return None
    if any((k.start, k.stop) != (None, None) for k in key) or any((k.step or 1) != 1 for k in key[:2]):
        return None
    window = Window((1, 1), (key[2].step or 1, key[3].step or 1))
    return call.step("maxpool", "subsample", window=window)


FUNCTIONS: dict[str, Rule] = {
    "relu": lambda call: call.step("relu", "relu"),
    "relu_": lambda call: call.step("relu", "relu"),
    "relu6": lambda call: call.step("relu", "relu6", cap=6.0),
    "sign": lambda call: call.step("sign", "sign"),
    "add": _add,
    "iadd": _add,
    "add_": _add,
    "cat": _concat,
    "flatten": _flatten,
    "reshape": _flatten,
    "max_pool2d": _max_pool,
    "boolean_dispatch": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "dropout": lambda call: "identity",
    "getitem": _subsample,
}
METHODS: dict[str, Rule] = {
    **{k: FUNCTIONS[k] for k in ("relu", "relu_", "sign", "add", "add_", "flatten", "reshape", "mean")},
    "view": _flatten,
    "contiguous": lambda call: "identity",
    "squeeze": _flatten,
}
#: torch module class -> (function, the attributes that are its arguments)
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReLU": ("relu", ()),
    "ReLU6": ("relu6", ()),
    "MaxPool2d": ("max_pool2d", ("kernel_size", "stride", "padding", "dilation")),
    "AvgPool2d": ("avg_pool2d", ("kernel_size", "stride", "padding", "count_include_pad", "divisor_override")),
    "AdaptiveAvgPool2d": ("adaptive_avg_pool2d", ()),
    "Flatten": ("flatten", ()),
}
