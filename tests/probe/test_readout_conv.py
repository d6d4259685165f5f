"""A classifier that is a 1 x 1 convolution of the pooled map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerscope.probe import profile


class Gate(nn.Module):
    """Squeeze and excitation: its 1 x 1 convolutions look like a classifier and are none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.down(x.mean((2, 3), keepdim=True)))


def network(*head: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Gate(8), nn.AdaptiveAvgPool2d(1), *head)


def test_a_convolution_of_the_pooled_map_is_the_classifier() -> None:
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 5
    dense = nn.Linear(8, 5)
    conv = nn.Conv2d(8, 5, 1)
    conv.weight.data.copy_(dense.weight[:, :, None, None])
    by_conv = profile(network(conv, nn.Flatten()), (x, y))
    by_linear = profile(network(nn.Flatten(), dense), (x, y))
    assert by_conv.classifier == "5"
    assert by_linear.classifier == "6"
    assert by_conv.readout_cosine is not None
    assert by_linear.readout_cosine is not None
    assert abs(by_conv.readout_cosine - by_linear.readout_cosine) < 1e-6


def test_a_gate_is_no_classifier() -> None:
    seen = profile(network(nn.Flatten()), (torch.randn(16, 1, 8, 8), torch.arange(16) % 5))
    assert seen.classifier is None
