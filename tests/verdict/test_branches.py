"""Sums inside a branch are not the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerscope.probe import profile
from layerscope.verdict import judge
from layerscope.verdict.trunk import trunk


class MixerBlock(nn.Module):
    """Two paths summed, as large as one likes; not a step of the stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.content, self.position = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return 30 * (self.content(x) + self.position(x))


class OuterBlock(nn.Module):
    """A residual block whose branch holds such a sum, then a norm."""

    def __init__(self, channels: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.norm, self.last = mixer, nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.norm(self.mixer(x)).relu())


class StageBlock(nn.Module):
    """A stage of one block: it hands on what its block does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_sum_inside_a_branch_is_no_step_of_the_stream() -> None:
    torch.manual_seed(0)
    blocks = [OuterBlock(8, MixerBlock(8) if i > 1 else nn.Conv2d(8, 8, 3, padding=1)) for i in range(5)]
    model = nn.Sequential(nn.Conv2d(1, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    seen = profile(model, torch.randn(16, 1, 8, 8))
    assert seen["3.mixer"].residual
    assert [r.name for r in trunk(seen).forward] == ["1", "2", "3", "4", "5"]
    assert judge(seen).label == "healthy"


def test_a_stage_of_one_block_is_that_block() -> None:
    torch.manual_seed(0)
    blocks = [StageBlock(OuterBlock(8, nn.Conv2d(8, 8, 3, padding=1))) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(1, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    seen = profile(model, torch.randn(16, 1, 8, 8))
    assert [r.name for r in trunk(seen).forward] == [f"{i}.inner" for i in range(1, 5)]


class DenseStage(nn.Module):
    """What comes in, and beside it what a branch makes of it, scaled down to almost nothing at the start."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.way = nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.branch = nn.Sequential(
            nn.Conv2d(channels // 2, channels, 1), nn.GELU(), nn.Conv2d(channels, channels // 2, 1)
        )
        self.scale = nn.Parameter(torch.full((), scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.way(x)
        return torch.cat([x, self.scale * self.branch(x)], 1)


def test_a_concatenated_branch_that_starts_near_zero_is_beside_the_path() -> None:
    torch.manual_seed(0)
    stages = [DenseStage(16, 1e-6) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(1, 16, 3), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    seen = profile(model, torch.randn(16, 1, 8, 8))
    assert [r.name for r in trunk(seen).backward] == ["0", *(f"{i}.way.1" for i in range(1, 5))]
    assert judge(seen).label == "healthy"
    for stage in stages:
        nn.init.ones_(stage.scale)
    assert len(trunk(profile(model, torch.randn(16, 1, 8, 8))).backward) == 13


def test_a_gradient_that_explodes_along_a_chain_leaves_no_layer_out() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(50) for part in (nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())]
    seen = profile(nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 4)), torch.randn(32, 1, 8, 8))
    gradients = [r.grad_scaled or 0.0 for r in trunk(seen).backward]
    assert len(gradients) == 50
    assert gradients[0] > 1e4 * gradients[-1]
