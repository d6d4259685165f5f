"""From a network spec and a norm spec to a network with seeded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from layerscope import norms
from layerscope.errors import SourceError
from layerscope.nets import convnext, mixer, plain, resnet, transformer
from layerscope.nets.catalogue import arguments
from layerscope.nets.layers import Maker
from layerscope.spec import Spec


def build(
    spec: str | Spec,
    norm: str | Spec = "batch",
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    """A reference network with this norm in every layer, in training mode, on the CPU.

    Args:
        spec: network, such as ``resnet56:skipinit=true,width=16``; see :func:`layerscope.nets.info`.
        norm: norm, such as ``group:size=8``; see :func:`layerscope.norms.info`.
        in_shape: shape of one sample: (channels, height, width); ``mlp`` takes any shape.
        classes: outputs of the classifier.
        seed: same spec and seed, same drawn weights, whatever the norm; the global generators stay as they are.

    Raises:
        SpecError: unknown network, norm or parameter, or a combination that means nothing.
        SourceError: the input shape does not suit the network.
    """
    read, arg = arguments(spec)
    shape = _checked_shape(in_shape, image=read.name not in ("mlp", "gpt"), name=str(read))
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise SourceError(f"{read}: classes={classes!r} is not a whole number of at least 1")
    with torch.random.fork_rng(devices=[]):
        # A norm that draws its own parameters must not depend on what was drawn before.
        torch.manual_seed(seed)
        return _MAKERS[read.name](Maker(norms.recipe(norm), seed), shape, classes, **arg)


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(plain.cfg, name) for name in plain.CFG},
    "uniform": plain.uniform,
    "plain": plain.plain,
    "vgg": plain.vgg,
    **{f"resnet{depth}": partial(resnet.resnet, blocks=(depth - 2) // 6) for depth in (20, 32, 56, 110)},
    "resnet": resnet.resnet,
    "mlp": plain.mlp,
    "vit": transformer.vit,
    "gpt": transformer.gpt,
    "mixer": mixer.mixer,
    "convnext": convnext.convnext,
}


def _checked_shape(in_shape: Sequence[int], *, image: bool, name: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in in_shape)
    except (TypeError, ValueError):
        raise SourceError(f"{name}: in_shape={in_shape!r} is not a shape such as (3, 32, 32)") from None
    if not shape or min(shape) < 1:
        raise SourceError(f"{name}: in_shape={shape} has no room for a sample; every size must be at least 1")
    if image and len(shape) != 3:
        raise SourceError(f"{name} takes images (channels, height, width), got in_shape={shape}; mlp takes any shape")
    if image and min(shape[1:]) < 2:
        raise SourceError(
            f"{name} needs images of at least 2 x 2 pixels, got {shape[1]} x {shape[2]}; resize them or use mlp"
        )
    return shape
