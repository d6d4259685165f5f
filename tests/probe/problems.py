"""Small networks that cover what real ones do to a recorder, as data: name -> (factory, input shape)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.act = nn.ReLU(inplace=True)  # one module, called twice

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(self.conv1(x)))
        out: Tensor = self.act(self.norm2(self.conv2(h)) + x)
        return out


def residual(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        norm(8),
        nn.ReLU(inplace=True),
        ResidualBlock(8, norm),
        nn.MaxPool2d(2),
        ResidualBlock(8, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def channels_last() -> nn.Module:
    return residual().to(memory_format=torch.channels_last)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
    )


def inplace_after_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), Head(8, 5)
    )


class Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class TokenLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        out: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return out


class Transformer(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList(TokenLayer(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


class Functional(nn.Module):
    """Every activation and the residual addition are functions, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)) + x, inplace=True)
        out: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class ConvNeXtLike(nn.Module):
    """Maps turned to channels-last tokens and back, as ConvNeXt does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.fc1, self.act, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = Head(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.dw(x).permute(0, 2, 3, 1)
        h = self.fc2(self.act(self.fc1(self.norm(h)))).permute(0, 3, 1, 2)
        out: Tensor = self.head(x + h)
        return out


@dataclass(frozen=True)
class Problem:
    name: str
    factory: Callable[[], nn.Module]
    in_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64

    def build(self, samples: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model = self.factory().to(self.dtype)
        x = torch.randn(samples, *self.in_shape, dtype=self.dtype)
        return model, x, torch.randint(5, (samples,))


PROBLEMS = (
    Problem("residual", residual, (3, 8, 8)),
    Problem("residual32", residual, (3, 8, 8), torch.float32),
    Problem("group_norm", lambda: residual(lambda c: nn.GroupNorm(2, c)), (3, 8, 8)),
    Problem("channels_last", channels_last, (3, 8, 8)),
    Problem("mlp", mlp, (6,)),
    Problem("inplace", inplace_after_conv, (3, 8, 8)),
    Problem("tokens", Transformer, (7, 6)),
    Problem("functional", Functional, (3, 8, 8)),
    Problem("convnext", ConvNeXtLike, (3, 8, 8)),
)
