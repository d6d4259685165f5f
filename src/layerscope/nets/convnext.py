"""A small ConvNeXt: depthwise 7 x 7 convolution, one norm, and a feed-forward network on channels in every block.

Source: Liu et al. 2022, arXiv 2201.03545; with ``grn`` the block of ConvNeXt V2, Woo et al. 2023, arXiv 2301.00808.
The norm of the original is ``layer2d``.
"""

from __future__ import annotations

from torch import Tensor, nn

from layerscope import norms
from layerscope.nets.layers import Maker, Map
from layerscope.nets.tokens import LayerScale, hidden_activation, require_norm_without_activation


class ConvNeXtBlock(nn.Module):
    """``x + scale(down(grn(act(up(norm(depthwise(x)))))))``."""

    def __init__(self, make: Maker, width: int, *, grn: bool, layerscale: bool) -> None:
        super().__init__()
        self.depthwise = make.conv(width, width, kernel=7, groups=width, gain=1.0)
        self.norm = make.norm(width)
        self.up = make.conv(width, 4 * width, kernel=1, gain=1.0)
        self.act = hidden_activation(make, 4 * width, nn.GELU)
        self.grn = norms.build("grn", 4 * width) if grn else nn.Identity()
        self.down = make.conv(4 * width, width, kernel=1, gain=1.0)
        self.scale = LayerScale(width, 1e-6, maps=True) if layerscale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        branch = self.down(self.grn(self.act(self.up(self.norm(self.depthwise(x))))))
        out: Tensor = x + self.scale(branch)
        return out


class Downsample(nn.Module):
    """Norm, then a convolution of its own stride, which does not overlap."""

    def __init__(self, make: Maker, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm = make.norm(c_in)
        self.conv = make.conv(c_in, c_out, kernel=stride, stride=stride, padding=0, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H/stride, W/stride]."""
        out: Tensor = self.conv(self.norm(x))
        return out


class ConvNeXt(nn.Module):
    """Patch stem, stages of blocks with downsampling between them, norm, average, linear classifier.

    The last norm stands before the pooling and not, as in the original, after it: there it would have no positions.
    """

    def __init__(self, stem: nn.Module, stages: list[nn.Module], norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        out: Tensor = self.head(self.pool(self.norm(self.stages(self.stem(x)))).flatten(1))
        return out


def convnext(
    make: Maker,
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    width: int,
    blocks: int,
    patch: int,
    grn: bool,
    layerscale: bool,
) -> ConvNeXt:
    """Three stages of ``blocks`` blocks with ``width``, ``2 width`` and ``4 width`` channels; variance ``1/fan_in``.

    Raises:
        SpecError: a norm that lives in an activation slot.
    """
    require_norm_without_activation("convnext", make, width)
    size = Map(*in_shape[1:], overlap=False)
    stride = size.stride(patch)
    stem = nn.Sequential()
    stem.add_module("conv", make.conv(in_shape[0], width, kernel=stride, stride=stride, padding=0, gain=1.0))
    stem.add_module("norm", make.norm(width))
    stages: list[nn.Module] = []
    for stage in range(3):
        channels = width * 2**stage
        if stage:
            stages.append(Downsample(make, channels // 2, channels, size.stride(2)))
        stages += [ConvNeXtBlock(make, channels, grn=grn, layerscale=layerscale) for _ in range(blocks)]
    return ConvNeXt(stem, stages, make.norm(channels), make.head(channels, classes))
