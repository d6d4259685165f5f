"""How calls (``F.relu``, ``x + y``, ``x.flatten(1)``) become steps, and what to say of those that cannot.

Constant maps become convolutions or scales: a slice of channels, a zero border and a crop are convolutions with one-hot
kernels, which cost no gate; ``x * gamma`` with a parameter is a scale, which folds like a batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.methods.encrypted.floatgraph import Step, StepOp
from layerscope.methods.encrypted.graph import Shape, Window

IDENTITY = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

_STATISTIC = (
    "divides by a statistic of the encrypted activations",
    "use a batch norm, which is a constant scale at inference and folds away",
)
_SMOOTH = (
    "is not a ReLU: an integer network holds only ReLU, ReLU6, sign and max-pool",
    "replace it by nn.ReLU and train on",
)
_STATISTICS = ("GroupNorm", "LayerNorm", "InstanceNorm1d", "InstanceNorm2d", "LocalResponseNorm", "RMSNorm")
_CURVES: tuple[str, ...] = (
    "GELU",
    "SiLU",
    "ELU",
    "CELU",
    "SELU",
    "Tanh",
    "Sigmoid",
    "LeakyReLU",
    "PReLU",
    "RReLU",
    "Hardswish",
    "Mish",
)
_CURVES += ("Hardsigmoid", "Hardtanh", "Softplus", "Softsign", "LogSigmoid", "Threshold")
_NORM_CALLS = (
    "group_norm",
    "layer_norm",
    "instance_norm",
    "local_response_norm",
    "rms_norm",
    "batch_norm",
    "var",
    "std",
)

#: class or function name -> (why not, what instead)
REMEDIES: dict[str, tuple[str, str]] = {
    **dict.fromkeys((*_STATISTICS, *_NORM_CALLS, "var_mean", "norm", "normalize"), _STATISTIC),
    **dict.fromkeys((*_CURVES, *(name.lower() for name in _CURVES), "leaky_relu"), _SMOOTH),
    **dict.fromkeys(("Softmax", "softmax", "LogSoftmax", "log_softmax"), (
        "divides by a sum of exponentials", "on logits: apply it after decryption; inside: use another layer"
    )),
    "MultiheadAttention": ("multiplies ciphertexts and divides by a softmax", "use a convolutional network"),
    "scaled_dot_product_attention": ("multiplies ciphertexts and divides by a softmax", "use a convolutional network"),
    "matmul": ("multiplies ciphertexts", "use a convolutional network"),
    "Square": ("multiplies ciphertexts", "use nn.ReLU, or the polynomial baseline CkksNet"),
    "mul": ("multiplies two activations", "use a gate that is constant at inference, such as a batch norm"),
    "BatchNorm2d": ("keeps no running statistics", "train it with track_running_stats=True"),
    "Conv2d": ("pads with something else than zeros", "use padding_mode='zeros'"),
    "Upsample": ("interpolates", "use a transposed layout without upsampling, or a stride of 1 before it"),
    "interpolate": ("interpolates", "use a layout without upsampling, or a stride of 1 before it"),
    "ConvTranspose2d": ("is a transposed convolution", "use convolutions and pools"),
    "Conv1d": ("has one spatial axis", "write it as a Conv2d with a kernel of height 1, on maps of height 1"),
    "Conv3d": ("has three spatial axes", "use Conv2d"),
    "Linear": ("acts on tokens, not on one vector a sample", "flatten before it"),
    "linear": ("acts on tokens, not on one vector a sample", "flatten before it"),
    "MaxPool2d": ("rounds its size up (ceil_mode) over a border", "choose a size that the stride divides"),
    "AvgPool2d": ("divides by counts that differ at the border", "use padding=0, or count_include_pad=True"),
    "AdaptiveAvgPool2d": ("averages windows of different sizes", "use an output size that divides the map"),
    "AdaptiveMaxPool2d": ("pools windows of different sizes", "use an output size that divides the map"),
}  # fmt: skip


#: Stands among the arguments of a call for a tensor that depends on the network's input.
SOURCE = object()


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
    part: int = 0
    """Which of several results."""

    def get(self, place: int, name: str, default: Any) -> Any:
        """An argument by place or name."""
        return self.args[place] if len(self.args) > place else (self.kwargs or {}).get(name, default)

    def step(self, op: StepOp, kind: str, *, window: Window | None = None, cap: float | None = None) -> Step:
        """A step of this call."""
        sources = self.sources if op in ("add", "concat") else self.sources[:1]
        return Step(self.name, op, sources, self.shape, window=window, cap=cap, kind=kind)

    def linear(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int, kind: str) -> Step | None:
        """A convolution by constants; None where the sizes do not fit a map or one vector a sample."""
        if window.out(*self.before[0][1:]) != self.shape[1:] or weight.shape[1] * groups != self.before[0][0]:
            return None
        constant = None if bias is None else bias.detach().double().cpu()
        weight = weight.detach().double().cpu()
        return Step(self.name, "conv", self.sources[:1], self.shape, weight, constant, window, groups, kind=kind)


Rule = Callable[[Call], "Step | str | None"]
"""A step, ``"identity"``, or None for what has no integer form."""


def pair(value: Any) -> tuple[int, int]:
    """A torch size argument as (height, width)."""
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _add(call: Call) -> Step | str | None:
    if len(call.sources) == 1:
        return _scaled(call, lambda c: (1.0, c))
    return call.step("add", "add") if len(set(call.before)) == 1 and call.get(2, "alpha", 1) == 1 else None


def _sub(call: Call) -> Step | str | None:
    first = len(call.sources) == 1 and call.args[0] is SOURCE and call.get(2, "alpha", 1) == 1
    return _scaled(call, lambda c: (1.0, -c)) if first else None


def _mul(call: Call) -> Step | str | None:
    return _scaled(call, lambda c: (c, 0.0)) if len(call.sources) == 1 else None


def _div(call: Call) -> Step | str | None:
    first = len(call.sources) == 1 and call.args[0] is SOURCE and not call.get(2, "rounding_mode", None)
    return _scaled(call, lambda c: (1 / c, 0.0)) if first else None


def _scaled(call: Call, map_of: Callable[[Tensor], tuple[Any, Any]]) -> Step | None:
    """``a x + d`` from the argument that does not depend on the input: a number, or one for each channel."""
    found = [v for v in (*call.args[:2], (call.kwargs or {}).get("other")) if isinstance(v, Tensor | int | float)]
    if len(found) != 1 or call.shape != call.before[0]:
        return None
    constant = torch.as_tensor(found[0]).detach().double().cpu()
    channels, is_map = call.shape[0], call.shape[1:] != (1, 1)
    fits = (
        constant.ndim >= 3 and constant.shape[-3:] == (channels, 1, 1) if is_map else constant.shape[-1:] == (channels,)
    )
    if constant.numel() != 1 and not (fits and constant.numel() == channels):
        return None
    a, d = (torch.as_tensor(v, dtype=torch.float64).expand(channels).clone() for v in map_of(constant.reshape(-1)))
    return Step(call.name, "norm", call.sources, call.shape, a, d, kind="scale")


def _conv2d(call: Call) -> Step | None:
    weight, bias = call.get(1, "weight", None), call.get(2, "bias", None)
    stride, padding = pair(call.get(3, "stride", 1)), call.get(4, "padding", 0)
    dilation, groups = pair(call.get(5, "dilation", 1)), int(call.get(6, "groups", 1))
    if len(call.sources) != 1 or not isinstance(weight, Tensor) or weight.ndim != 4:
        return None
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        odd = [t % 2 for t in total]
        if any(o and d != 1 for o, d in zip(odd, dilation, strict=True)):
            return None
        # torch pads the right more; a leading tap of zeros makes both sides alike
        weight = nn.functional.pad(weight.detach(), (odd[1], 0, odd[0], 0))
        kernel, padding = (
            (kernel[0] + odd[0], kernel[1] + odd[1]),
            tuple(t // 2 + o for t, o in zip(total, odd, strict=True)),
        )
    return call.linear(weight, bias, Window(kernel, stride, pair(padding), dilation), groups, "conv2d")


def _linear(call: Call) -> Step | None:
    weight, bias = call.get(1, "weight", None), call.get(2, "bias", None)
    if len(call.sources) != 1 or not isinstance(weight, Tensor) or call.before[0][1:] != (1, 1):
        return None  # over tokens
    return call.linear(weight[:, :, None, None], bias, Window((1, 1)), 1, "linear")


def _batch_norm(call: Call) -> Step | None:
    mean, var, weight, bias = (
        call.get(i, n, None) for i, n in enumerate(("running_mean", "running_var", "weight", "bias"), 1)
    )
    if len(call.sources) != 1 or mean is None or var is None or call.get(5, "training", False):
        return None
    a = 1 / torch.sqrt(var.detach().double() + call.get(7, "eps", 1e-5))
    if weight is not None:
        a = a * weight.detach().double()
    d = (0.0 if bias is None else bias.detach().double()) - mean.detach().double() * a
    if len(a) != call.shape[0]:
        return None
    return Step(call.name, "norm", call.sources, call.shape, a.cpu(), d.cpu(), kind="batch_norm")


def _pad(call: Call) -> Step | None:
    """A border of zeros, or a crop where a side is negative, as a depthwise convolution with one tap."""
    sides, value = list(call.get(1, "pad", call.get(1, "padding", ()))), call.get(3, "value", None)
    if call.get(2, "mode", "constant") != "constant" or value not in (None, 0, 0.0) or any(sides[4:]):
        return None
    (left, right), (top, bottom) = (tuple(sides[:2]) or (0, 0)), (tuple(sides[2:4]) or (0, 0))
    reach = [max(top, bottom, 0), max(left, right, 0)]
    kernel = [2 * p - a - b + 1 for p, (a, b) in zip(reach, ((top, bottom), (left, right)), strict=True)]
    channels = call.before[0][0]
    weight = torch.zeros(channels, 1, *kernel, dtype=torch.float64)
    weight[:, :, reach[0] - top, reach[1] - left] = 1.0
    return call.linear(weight, None, Window((kernel[0], kernel[1]), padding=(reach[0], reach[1])), channels, "pad")


def _channels(call: Call, first: int) -> Step | str | None:
    """Some neighbouring channels: a one-hot 1 x 1 convolution."""
    before, shape = call.before[0], call.shape
    if shape == before:
        return "identity"
    weight = torch.zeros(shape[0], before[0], 1, 1, dtype=torch.float64)
    rows = torch.arange(shape[0])
    weight[rows, rows + first] = 1.0
    return call.linear(weight, None, Window((1, 1)), 1, "slice")


def _chunk(call: Call) -> Step | str | None:
    if call.get(2, "dim", 0) not in (1, -3) or len(call.sources) != 1:
        return None
    return _channels(call, call.part * -(-call.before[0][0] // int(call.get(1, "chunks", 1))))


def _split(call: Call) -> Step | str | None:
    sizes = call.get(1, "split_size_or_sections", call.get(1, "split_size", None))
    if call.get(2, "dim", 0) not in (1, -3) or sizes is None or len(call.sources) != 1:
        return None
    return _channels(call, call.part * sizes if isinstance(sizes, int) else sum(sizes[: call.part]))


def _clamp(call: Call) -> Step | None:
    low = call.get(1, "min", call.get(1, "min_val", None))
    high = call.get(2, "max", call.get(2, "max_val", None))
    if low != 0 or isinstance(high, Tensor) or (high is not None and high <= 0):
        return None
    return call.step("relu", "clamp", cap=None if high is None else float(high))


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


def _adaptive(call: Call, op: StepOp = "avgpool") -> Step | str | None:
    before, shape = call.before[0], call.shape
    if before[1:] == shape[1:]:
        return "identity"
    if before[1] % shape[1] or before[2] % shape[2]:
        return None
    kernel = (before[1] // shape[1], before[2] // shape[2])
    return call.step(op, "adaptive pool", window=Window(kernel, kernel))


def _mean(call: Call) -> Step | None:
    dims, before = call.get(1, "dim", None), call.before[0]
    if (
        dims is None
        or (call.kwargs or {}).get("dtype")
        or sorted(d % 4 for d in (dims if isinstance(dims, list | tuple) else [dims])) != [2, 3]
    ):
        return None
    return call.step("avgpool", "mean", window=Window(before[1:], before[1:]))


def _getitem(call: Call) -> Step | str | None:
    """``x[:, :, ::2, ::2]`` is a max-pool over one tap, ``x[:, a:b]`` a one-hot convolution: neither costs anything."""
    key = call.get(1, "key", None)
    key = key if isinstance(key, tuple) else (key,)
    if len(key) > 4 or any(not isinstance(k, slice) for k in key):
        return None
    key = key + (slice(None),) * (4 - len(key))
    if key[0] != slice(None) or (key[1].step or 1) != 1:
        return None
    if key[1] != slice(None) and key[2:] == (slice(None), slice(None)):
        return _channels(call, key[1].indices(call.before[0][0])[0])
    if key[1] != slice(None) or any((k.start, k.stop) != (None, None) for k in key[2:]):
        return None
    window = Window((1, 1), (key[2].step or 1, key[3].step or 1))
    return call.step("maxpool", "subsample", window=window)


def _identity(call: Call) -> str:
    return "identity"


_ALIASES = {
    "relu": (), "relu6": (), "sign": (), "clamp": ("clip", "hardtanh"),
    "add": ("iadd", "radd"), "sub": ("isub",), "mul": ("imul", "rmul", "multiply"),
    "div": ("truediv", "itruediv", "true_divide"),
    "cat": ("concat", "concatenate"), "flatten": ("reshape", "view", "squeeze"), "mean": (), "pad": (),
    "max_pool2d": ("boolean_dispatch",), "avg_pool2d": (), "adaptive_avg_pool2d": (),
    "adaptive_max_pool2d": (),
    "conv2d": (), "linear": (), "batch_norm": (), "chunk": (), "split": ("split_with_sizes",), "getitem": (),
    "dropout": ("dropout2d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "contiguous",
                "clone", "detach", "to", "float", "double", "type", "requires_grad"),
}  # fmt: skip
_RULES: dict[str, Rule] = {
    "relu": lambda call: call.step("relu", "relu"),
    "relu6": lambda call: call.step("relu", "relu6", cap=6.0),
    "sign": lambda call: call.step("sign", "sign"),
    "clamp": _clamp,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "cat": _concat,
    "flatten": _flatten,
    "mean": _mean,
    "pad": _pad,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": lambda call: _adaptive(call, "maxpool"),
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "chunk": _chunk,
    "split": _split,
    "getitem": _getitem,
    "dropout": _identity,
}
#: Name of a call, or one of its aliases -> how it becomes a step.
FUNCTIONS: dict[str, Rule] = {alias: rule for name, rule in _RULES.items() for alias in (name, *_ALIASES[name])}
#: torch module class -> (function, the attributes that are its arguments)
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReLU": ("relu", ()),
    "ReLU6": ("relu6", ()),
    "Hardtanh": ("clamp", ("min_val", "max_val")),
    "MaxPool2d": ("max_pool2d", ("kernel_size", "stride", "padding", "dilation")),
    "AvgPool2d": ("avg_pool2d", ("kernel_size", "stride", "padding", "count_include_pad", "divisor_override")),
    "AdaptiveAvgPool2d": ("adaptive_avg_pool2d", ()),
    "AdaptiveMaxPool2d": ("adaptive_max_pool2d", ()),
    "Flatten": ("flatten", ()),
    "ZeroPad2d": ("pad", ("padding",)),
}
