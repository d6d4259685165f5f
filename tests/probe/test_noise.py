"""The batch-noise ratio of real networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from layerscope.probe import profile


def plain(norm: Callable[[int], nn.Module], depth: int, width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 1
    for i in range(depth):
        conv = nn.Conv2d(channels, width, 3, stride=2 if i in (0, depth // 2) else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        layers += [conv, norm(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def noise(model: nn.Module, size: int, samples: int = 64) -> float:
    x = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x = x + 2 * torch.randn(samples, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    nu = profile(model, x, batch_size=size, batch_noise=True, select=["0"]).batch_noise
    assert nu is not None
    return nu


@pytest.mark.parametrize(
    "norm",
    [
        lambda c: nn.GroupNorm(1, c),
        lambda c: nn.GroupNorm(4, c),
        lambda c: nn.InstanceNorm2d(c),
        lambda c: nn.Identity(),
    ],
    ids=["layer", "group", "instance", "none"],
)
def test_exactly_zero_without_batch_statistics(norm: Callable[[int], nn.Module]) -> None:
    assert noise(plain(norm, 6), 8) == 0


def test_random_masks_are_not_batch_noise() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))
    assert noise(model, 8) == 0


def test_batch_norm_noise_falls_with_the_batch_size_and_grows_with_depth() -> None:
    shallow, deep = plain(nn.BatchNorm2d, 6), plain(nn.BatchNorm2d, 10)
    by_size = [noise(deep, size) for size in (4, 8, 32)]
    assert by_size[0] > by_size[1] > by_size[2] > 0
    assert noise(shallow, 8) < by_size[1]
    assert noise(plain(nn.BatchNorm2d, 20), 4) > 1


def test_one_layer_against_many_draws() -> None:
    """One linear layer and batch norm: nu against brute force over 400 batches of the same samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    x = torch.randn(48, 1, 8, 8)
    anchors, draws = 12, []
    with torch.no_grad():
        body = nn.Sequential(*list(model)[:-1]).train()
        for _ in range(400):
            companions = x[torch.randint(48, (7,))]
            draws.append(torch.stack([body(torch.cat((x[a : a + 1], companions)))[0] for a in range(anchors)]))
    z = torch.stack(draws)
    brute = float(z.var(0).sum(1).mean() / z.mean(0).var(0).sum())
    measured = profile(model, x, batch_size=8, batch_noise=True, seed=0).batch_noise
    assert measured == pytest.approx(brute, rel=0.3)


def test_measured_where_there_is_more_than_one_batch() -> None:
    model, x = plain(nn.BatchNorm2d, 3), torch.randn(16, 1, 8, 8)
    assert profile(model, x).batch_noise is None
    assert profile(model, x, batch_size=8, level="light").batch_noise is None
    assert profile(model, x, batch_size=8).batch_noise is not None
    assert profile(model, x, batch_noise=True).batch_noise is not None
