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
