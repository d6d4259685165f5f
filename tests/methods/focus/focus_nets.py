"""Small networks with the building blocks of the large families, and masks of several kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(i: int, o: int, k: int, s: int = 1, groups: int = 1, act: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Basic(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.a, self.b = conv_bn(i, o, 3, s, act=nn.ReLU(inplace=True)), conv_bn(o, o, 3)
        self.down = conv_bn(i, o, 1, s) if s > 1 or i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y += x if self.down is None else self.down(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 7, 2, act=nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Basic(16, 16, 1), Basic(16, 24, 2), Basic(24, 40, 2))
        self.head = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(self.stem(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        c = lambda i, o: [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(inplace=True)]  # noqa: E731
        self.features = nn.Sequential(*c(3, 16), *c(16, 24), nn.MaxPool2d(2), *c(24, 32), *c(32, 32), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(32 * 9, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class NextBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.scale = nn.Parameter(torch.rand(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.mlp(self.norm(self.dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Norm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 4, 4), Norm2d(20))
        self.body = nn.Sequential(NextBlock(20), Norm2d(20), nn.Conv2d(20, 33, 2, 2), NextBlock(33))
        self.head = nn.Linear(33, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean([2, 3]))


class Squeeze(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.pool, self.a, self.b = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 8, 1), nn.Conv2d(8, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.b(F.relu(self.a(self.pool(x)))))


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, act=nn.ReLU6(inplace=True))
        self.body = nn.Sequential(
            conv_bn(16, 40, 1, act=nn.Hardswish()),
            conv_bn(40, 40, 5, 2, groups=40, act=nn.SiLU()),
            Squeeze(40),
            conv_bn(40, 24, 1),
            conv_bn(24, 24, 3, groups=4, act=nn.LeakyReLU(0.1)),
            nn.Dropout(0.2),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


class SamePad(nn.Conv2d):
    """TensorFlow's 'same' padding: more at the bottom and right, as a module of its own before a functional layer."""

    def __init__(self, i: int, o: int, k: int, s: int, groups: int = 1) -> None:
        super().__init__(i, o, k, s, groups=groups, bias=False)
        self.pad = nn.ZeroPad2d(((k - s) // 2, (k - s + 1) // 2, (k - s) // 2, (k - s + 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pad(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Lite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SamePad(3, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.body = nn.Sequential(
            SamePad(12, 12, 3, 1, 12),
            nn.BatchNorm2d(12),
            nn.ReLU6(),
            SamePad(12, 20, 5, 2),
            nn.ReLU(),
            SamePad(20, 20, 3, 2),
        )
        self.pool, self.head = nn.AdaptiveMaxPool2d(1), nn.Linear(20, 7)

    def forward(self, inputs: Tensor) -> Tensor:
        n = inputs.size(0)
        x = self.pool(self.body(self.stem(inputs)))
        return self.head(x.view(n, -1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, act=nn.ReLU())
        self.bn1, self.c1 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1)
        self.bn2, self.c2 = nn.BatchNorm2d(24), nn.Conv2d(24, 8, 3, padding=2, dilation=2)
        self.trans, self.pool = nn.Conv2d(32, 20, 1), nn.AvgPool2d(3, 2, 1)
        self.last, self.head = nn.Conv2d(20, 20, 3, 2, 1), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.c1(torch.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.c2(torch.relu(self.bn2(x)))], dim=1)
        return self.head(self.last(self.pool(self.trans(x))).mean((2, 3)))


class Standardized(nn.Conv2d):
    """Weights are normalised on every call."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class Shuffle(nn.Module):
    """ShuffleNet, GhostNet, Res2Net, SE before and after the cut, ResNet-D's pooling, gates and plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = conv_bn(3, 16, 3, 2, act=nn.ReLU()), Squeeze(16)
        self.right, self.ghost = conv_bn(8, 8, 3, groups=8, act=nn.ReLU()), conv_bn(16, 8, 3, groups=8)
        self.third, self.standardized = conv_bn(8, 8, 3), Standardized(24, 32, 3, padding=1)
        self.pool, self.after = nn.AvgPool2d(2, 2, ceil_mode=True), Squeeze(32)
        self.last, self.head = conv_bn(32, 20, 3), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(self.stem(x)))
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.right(right)), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous().view(n, c, h, w)
        x = torch.cat([x, self.ghost(x)], 1)[:, :20, :, :]
        a, b, rest = torch.split(x, [8, 8, 4], 1)
        x = torch.cat([a, self.third(b + a), rest, rest * 0.5 + 1.0], 1)
        x = self.after(self.pool(self.standardized(x)))
        x = self.last(x * torch.sigmoid(x) / 0.7)
        return self.head(x.mean((2, 3)))


class Segment(nn.Module):
    """A map at the size of the input: the size crosses the cut, the input does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 12, 3, 2, act=nn.ReLU()), conv_bn(12, 12, 3, act=nn.ReLU())
        self.more, self.classes = conv_bn(12, 12, 3, act=nn.ReLU()), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        y = self.classes(self.more(self.body(self.stem(x))))
        return (
            F.interpolate(y, size=size, mode="bilinear", align_corners=False)
            .flatten(2)
            .view(x.size(0), 4, size[0], size[1])
        )


#: name -> (class, the cut that the tests use)
FAMILIES = {
    "resnet": (ResNet, "pool"),
    "vgg": (Vgg, "features.1"),
    "convnext": (ConvNext, "permute_1"),
    "mobile": (Mobile, "stem.2"),
    "dense": (Dense, "stem.2"),
    "lite": (Lite, "stem.2"),
    "shuffle": (Shuffle, "relu_1"),
    "segment": (Segment, "stem.2"),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network with random BatchNorm statistics: the default ones hide that BN(0) is not 0."""
    torch.manual_seed(seed)
    net = FAMILIES[name][0]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
        if isinstance(module, nn.LayerNorm):
            module.bias.data.normal_(0, 0.3)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


def make_mask(kind: str, images: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Masks that differ per image: blobs, independent positions, boxes, one position, the border."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.rand(images, height, width, generator=g)
    if kind == "independent":
        return noise > 0.6
    if kind == "blob":
        smooth = F.avg_pool2d(noise[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
        return smooth > smooth.flatten(1).median(1).values[:, None, None]
    mask = torch.zeros(images, height, width, dtype=torch.bool)
    if kind == "one":
        mask[:, height // 2, width // 3] = True
    elif kind == "border":
        mask[:, 0], mask[:, :, -1] = True, True
    else:
        for i in range(images):
            mask[i, 1 : height - 1 - i, i : width // 2 + i] = True
    return mask


MASKS = ("blob", "independent", "rectangle", "one", "border")
