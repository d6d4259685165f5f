"""Networks in no study file: what the verdict says, and what a short training on digits does.

The limits for tokens whose mean is classified were chosen on ``Rows``; the others were not chosen on nets of this file.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import layerscope
from layerscope import Verdict, training
from layerscope.verdict.rules import judge

Norm = Callable[[int], nn.Module]


def cnn(depth: int, norm: Norm, stride: int = 1, width: int = 12) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        step = stride if i == depth // 2 else 1
        layers += [nn.Conv2d(width if i else 1, width, 3, step, padding=1), norm(width), nn.LeakyReLU(0.05)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mlp(depth: int, width: int = 48) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(width if i else 64, width), nn.BatchNorm1d(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Rows(nn.Module):
    """The rows of a digit as tokens, into PyTorch's own encoder; the mean token is classified."""

    def __init__(self, layers: int, norm_first: bool, last: nn.Module | None = None, spread: float = 1.0) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(spread * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for block in self.encoder.layers:
            for p in block.parameters():
                if p.ndim > 1:
                    nn.init.normal_(p, std=p.shape[1] ** -0.5)
        self.last = last or nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.encoder(self.embed(x.squeeze(1)) + self.place)).mean(1))


class OverTokens(nn.Module):
    """InstanceNorm over the tokens of a sample."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def read_and_train(make: Callable[[], nn.Module], size: int = 32, lr: float = 0.1) -> tuple[Verdict, float]:
    """The verdict, and the share of training samples classified correctly in the last ten of 100 steps."""
    torch.manual_seed(3)
    model = make()
    found = judge(layerscope.profile(model, layerscope.batch("digits", 2 * size, seed=1), batch_size=size))
    history = training.fit(model, "digits", steps=100, batch_size=size, lr=lr, seed=1, progress=False)
    return found, sum(history.accuracies[-10:]) / 10


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_shallow_convolutions_with_batch_norm_are_healthy_and_train(depth: int) -> None:
    found, accuracy = read_and_train(lambda: cnn(depth, nn.BatchNorm2d, stride=2))
    assert found.label == "healthy", found.reason
    assert accuracy > 0.7


@pytest.mark.parametrize("depth", [2, 8, 12])
def test_batch_norm_mlps_are_healthy_at_32_samples_and_train(depth: int) -> None:
    found, accuracy = read_and_train(lambda: mlp(depth))
    assert found.label == "healthy", found.reason
    assert accuracy > 0.7


def test_a_deep_batch_norm_mlp_is_unstable_at_4_samples_and_does_not_train() -> None:
    found, accuracy = read_and_train(lambda: mlp(16), size=4)
    assert found.label == "unstable", found.reason
    assert accuracy < 0.4


def test_what_pooling_makes_alike_is_very_slow() -> None:
    found, accuracy = read_and_train(lambda: cnn(8, lambda c: nn.GroupNorm(1, c)))
    better, reference = read_and_train(lambda: cnn(8, nn.BatchNorm2d))
    assert (found.label, better.label) == ("very slow", "healthy"), found.reason
    assert accuracy < reference / 2


def test_norm_after_the_addition_collapses_tokens_with_depth_and_does_not_train() -> None:
    after, slow = read_and_train(lambda: Rows(12, norm_first=False), lr=0.02)
    before, fast = read_and_train(lambda: Rows(12, norm_first=True), lr=0.02)
    assert (after.label, before.label) == ("very slow", "healthy"), (after.reason, before.reason)
    assert "tokens of one sample have collapsed" in after.reason.lower()
    assert slow < 0.2 < 0.6 < fast


def test_tokens_that_start_alike_are_not_called_collapsed() -> None:
    found, accuracy = read_and_train(lambda: Rows(4, norm_first=True, spread=0.02), lr=0.02)
    assert found.label == "healthy", found.reason
    assert accuracy > 0.4


def test_the_mean_of_what_has_none_cannot_be_learned_from() -> None:
    found, accuracy = read_and_train(lambda: Rows(2, norm_first=True, last=OverTokens()), lr=0.02)
    assert found.label == "fails", found.reason
    assert "moves no weight" in found.reason
    assert accuracy < 0.2
