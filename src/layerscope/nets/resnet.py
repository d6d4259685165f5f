"""CIFAR ResNets with post- or pre-activation blocks, with and without SkipInit.

Blocks are those of He et al. 2016 (arXiv 1512.03385 and 1603.05027) with the shortcut of Lubana, Dick and Tanaka
(arXiv 2106.05956): where the width changes, a normalized 3 x 3 convolution of stride 2. Elsewhere the skip path is the
block's input itself, untouched: no activation here works in place.
"""

from __future__ import annotations

from torch import Tensor, nn

from layerscope.errors import SpecError
from layerscope.nets.layers import ConvLayer, Gain, Maker, Map


class ResidualBlock(nn.Module):
    """Post-activation block: ``act(a * norm2(conv2(act(norm1(conv1(x))))) + shortcut(x))``.

    With ``branch_act`` the last activation stands on the branch: ``a * act(norm2(...)) + shortcut(x)``. The scaled ReLU
    of weight normalization needs this: on the sum it would amplify the skip path by up to ``2 pi / (pi - 1)`` a block.
    ``a`` is 1, or with ``skipinit`` a learnable scalar that starts at 0.
    """

    def __init__(
        self, make: Maker, c_in: int, c_out: int, stride: int, *, skipinit: bool = False, branch_act: bool = False
    ) -> None:
        super().__init__()
        self.branch_act = branch_act
        self.conv1 = make.conv(c_in, c_out, stride=stride)
        self.norm1 = make.norm(c_out)
        self.act1 = make.activation(c_out)
        self.conv2 = make.conv(c_out, c_out)
        self.norm2 = make.norm(c_out)
        self.gain = Gain() if skipinit else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("conv", make.conv(c_in, c_out, stride=stride))
            self.shortcut.add_module("norm", make.norm(c_out))
        self.act2 = make.activation(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H/stride, W/stride]."""
        branch = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        if self.branch_act:
            out: Tensor = self.gain(self.act2(branch)) + self.shortcut(x)
        else:
            out = self.act2(self.gain(branch) + self.shortcut(x))
        return out


class PreActBlock(nn.Module):
    """Pre-activation block: ``a * conv2(act(norm2(conv1(act(norm1(x)))))) + shortcut(x)``."""

    def __init__(self, make: Maker, c_in: int, c_out: int, stride: int, *, skipinit: bool = False) -> None:
        super().__init__()
        self.norm1 = make.norm(c_in)
        self.act1 = make.activation(c_in)
        self.conv1 = make.conv(c_in, c_out, stride=stride)
        self.norm2 = make.norm(c_out)
        self.act2 = make.activation(c_out)
        self.conv2 = make.conv(c_out, c_out)
        self.gain = Gain() if skipinit else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("norm", make.norm(c_in))
            self.shortcut.add_module("conv", make.conv(c_in, c_out, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H/stride, W/stride]."""
        branch = self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))
        out: Tensor = self.gain(branch) + self.shortcut(x)
        return out


class Stage(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The blocks, one after the other."""
        out: Tensor = self.blocks(x)
        return out


class ResNet(nn.Module):
    """Stem layer, three stages of residual blocks, global average pooling and a linear classifier."""

    def __init__(
        self, stem: nn.Module, stages: list[Stage], final: nn.Module, channels: int, make: Maker, classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.final = final
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = make.head(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        out: Tensor = self.head(self.pool(self.final(self.stages(self.stem(x)))).flatten(1))
        return out


def resnet(
    make: Maker,
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    blocks: int,
    width: int,
    preact: bool,
    skipinit: bool,
    branch_act: bool,
    final_norm: bool,
    stem_stride: int,
) -> ResNet:
    """``6 blocks + 2`` layers in three stages of ``width``, ``2 width`` and ``4 width`` channels.

    Widths of the paper: 32, 64, 128 (He et al.: 16, 32, 64). As in the paper the stem is ``conv -> norm -> activation``
    with both kinds of block, and a pre-activation network pools its raw residual stream; ``final_norm`` adds the norm
    and activation that He et al. put before the pooling.

    Raises:
        SpecError: ``branch_act`` or ``final_norm`` with the kind of block that it means nothing for.
    """
    if preact and branch_act:
        raise SpecError(
            "resnet: branch_act is for post-activation blocks; a pre-activation skip path has no activation"
        )
    if final_norm and not preact:
        raise SpecError("resnet: final_norm is for preact=true; a post-activation block already ends normalized")
    size = Map(*in_shape[1:])
    stem = ConvLayer(make, in_shape[0], width, stride=size.stride(stem_stride))
    stages, channels = [], width
    for stage in range(3):
        made: list[nn.Module] = []
        for block in range(blocks):
            stride = size.stride(2) if stage and not block else 1
            c_out = width * 2**stage
            made.append(
                PreActBlock(make, channels, c_out, stride, skipinit=skipinit)
                if preact
                else ResidualBlock(make, channels, c_out, stride, skipinit=skipinit, branch_act=branch_act)
            )
            channels = c_out
        stages.append(Stage(*made))
    final: nn.Module = nn.Identity()
    if final_norm:
        final = nn.Sequential()
        final.add_module("norm", make.norm(channels))
        final.add_module("act", make.activation(channels))
    return ResNet(stem, stages, final, channels, make, classes)
