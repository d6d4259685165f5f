"""Modules of torch.nn as operations on rows; exact classes only, because a subclass may do anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from layerscope.methods.focus.levels import Geometry
from layerscope.methods.focus.ops import (
    Act,
    Affine,
    Context,
    Conv,
    GlobalMean,
    Kind,
    Pool,
    Same,
    Unsupported,
)
from layerscope.methods.focus.reading import (
    first_argument,
    mean_pool,
    need_channels,
    norm_over,
    pair,
    pair_or_none,
    pool_geometry,
)


def conv_of(module: nn.Conv2d) -> Conv:
    """The layer as rows see it.

    Raises:
        Unsupported: a padding mode other than zeros.
    """
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode {module.padding_mode!r}: only zeros")
    extra = (0, 0)
    if isinstance(module.padding, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        same = module.padding == "same"
        padding = (total[0] // 2, total[1] // 2) if same else (0, 0)
        extra = (total[0] % 2, total[1] % 2) if same else (0, 0)
    else:
        padding = pair(module.padding)
    bias = module.bias if module.bias is not None else module.weight.new_zeros(module.out_channels)
    kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
    geometry = Geometry(kernel, stride, padding, dilation, extra=extra)
    return Conv(module.weight.detach(), bias.detach(), geometry, module.groups)


def _conv(module: nn.Conv2d, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=False)
    return conv_of(module)


def same_conv(module: nn.Module, node: fx.Node, context: Context) -> Kind:
    """Timm's Conv2dSame: padded by the size of its input, as TensorFlow does."""
    assert isinstance(module, nn.Conv2d)
    need_channels(node, context, last=False)
    kind = conv_of(module)
    return replace(kind, geometry=replace(kind.geometry, padding=(0, 0), same=True))


def is_same_conv(cls: type[nn.Module]) -> bool:
    """Whether a class is timm's Conv2dSame, known by name: timm is not imported for it."""
    return cls.__name__ == "Conv2dSame" and cls.__module__.startswith("timm.") and issubclass(cls, nn.Conv2d)


def _linear(module: nn.Linear, node: fx.Node, context: Context) -> Kind:
    if not context.channels_last.get(first_argument(node), False):
        raise Unsupported("a linear layer over another axis than the channels of rows")
    bias = module.bias if module.bias is not None else module.weight.new_zeros(module.out_features)
    return Conv(module.weight.detach()[:, :, None, None], bias.detach(), Geometry((1, 1)))


def _batch_norm(module: nn.BatchNorm2d, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=False)
    if module.running_mean is None or module.running_var is None:
        raise Unsupported("BatchNorm without running statistics normalises with the batch itself")
    scale = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach()
    shift = -module.running_mean * scale
    return Affine(scale, shift if module.bias is None else shift + module.bias.detach())


def _layer_norm(module: nn.LayerNorm, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=True)
    return norm_over(tuple(module.normalized_shape), module.weight, module.bias, module.eps)


def _max_pool(module: nn.MaxPool2d, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=False)
    if module.return_indices:
        raise Unsupported("max pooling that returns indices")
    stride = module.stride if module.stride is not None else module.kernel_size
    return Pool(pool_geometry(module.kernel_size, stride, module.padding, module.dilation, module.ceil_mode))


def _avg_pool(module: nn.AvgPool2d, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=False)
    return mean_pool(
        module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad,
        module.divisor_override,
    )  # fmt: skip


def _adaptive(module: nn.AdaptiveAvgPool2d, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=False)
    size, grid = pair_or_none(module.output_size), context.shapes[first_argument(node)][2:]
    if size == (1, 1):
        return GlobalMean(keepdim=True)
    raise Unsupported(f"adaptive pooling of {tuple(grid)} to {module.output_size} needs the whole map")


def _adaptive_max(module: nn.AdaptiveMaxPool2d, node: fx.Node, context: Context) -> Kind:
    need_channels(node, context, last=False)
    if pair_or_none(module.output_size) != (1, 1) or module.return_indices:
        raise Unsupported("adaptive max pooling to another size than 1 needs the whole map")
    return GlobalMean(keepdim=True, maximum=True)


def _act_module(kind: str | None) -> Callable[[nn.Module, fx.Node, Context], Kind]:
    def read(module: nn.Module, node: fx.Node, context: Context) -> Kind:
        name = kind
        if isinstance(module, nn.GELU) and module.approximate != "none":
            name = None
        return Act(name, _out_of_place(module))

    return read


def _out_of_place(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x.clone()) if getattr(module, "inplace", False) else module(x)


def _same(module: nn.Module, node: fx.Node, context: Context) -> Kind:
    return Same()


def _softmaxless(kinds: dict[type[nn.Module], str | None]) -> dict[type[nn.Module], Any]:
    return {cls: _act_module(kind) for cls, kind in kinds.items()}


MODULES: dict[type[nn.Module], Any] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.AdaptiveMaxPool2d: _adaptive_max,
    nn.Identity: _same,
    nn.Dropout: _same,
    nn.Dropout2d: _same,
    **_softmaxless(
        {
            nn.ReLU: "relu",
            nn.ReLU6: "relu6",
            nn.SiLU: "silu",
            nn.GELU: "gelu",
            nn.Hardswish: "hardswish",
            nn.Hardsigmoid: None,
            nn.Sigmoid: None,
            nn.Tanh: None,
            nn.LeakyReLU: None,
            nn.ELU: None,
            nn.CELU: None,
            nn.SELU: None,
            nn.Mish: None,
            nn.Softplus: None,
            nn.Hardtanh: None,
        }
    ),
}
