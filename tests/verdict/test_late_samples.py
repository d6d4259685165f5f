"""A sample that is not finite and that the lighter levels do not read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope.probe import profile
from layerscope.probe.records import Level
from layerscope.verdict import judge


class Tail(nn.Module):
    """Not finite for sample 40 of a batch alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = torch.ones(len(x), 1)
        keep[40:41] = float("nan")
        return x * keep


@pytest.mark.parametrize("level", ["light", "standard", "deep"])
def test_a_late_sample_that_is_not_finite(level: Level) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Tail(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    verdict = judge(profile(model, x, level=level))
    assert verdict.label == "fails"
    if level == "deep":
        assert verdict.where == "2"
    else:
        assert f"the first 32 samples of a batch, which is what level {level!r} reads" in verdict.reason
        assert "level 'deep' reads the others too" in verdict.reason
    small = judge(profile(model, x[:32], level=level))
    assert small.label != "fails"
