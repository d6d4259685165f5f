"""The batch-noise ratio of real networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layerscope import norm
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


def brute_force(body: nn.Module, x: Tensor, size: int, draws: int = 200, anchors: int = 12) -> float:
    """Nu by its definition: every anchor in ``draws`` batches of its own, among companions drawn from ``x``."""
    seen = []
    with torch.no_grad():
        for _ in range(draws):
            companions = x[torch.randint(len(x), (size - 1,))]
            seen.append(torch.stack([body(torch.cat((x[a : a + 1], companions)))[0] for a in range(anchors)]))
    z = torch.stack(seen).double()
    within = z.var(0).sum(1).mean()
    return float(within / (z.mean(0).var(0).sum() - within / draws))


@pytest.mark.parametrize(("samples", "size"), [(48, 8), (48, 16), (24, 24)])
def test_one_layer_against_many_draws(samples: int, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    x = torch.randn(200, 1, 8, 8)
    brute = brute_force(model[:-1].train(), x, size, anchors=30)
    measured = profile(model, x[:samples], batch_size=size, batch_noise=True, seed=0).batch_noise
    assert measured == pytest.approx(brute, rel=0.15)


def test_many_layers_against_many_draws() -> None:
    """Fourteen layers at batch size 6, where noise grows from layer to layer and nu is far from small."""
    model = plain(nn.BatchNorm2d, 14).train()
    x = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    brute = brute_force(model[:-1], x, 6, draws=40)
    assert brute > 1
    found = [profile(model, x[i : i + 60], batch_size=6, batch_noise=True, seed=0).batch_noise for i in (0, 60)]
    assert None not in found
    assert sum(nu for nu in found if nu is not None) / 2 == pytest.approx(brute, rel=0.25)


def exact(size: int) -> float:
    """Nu of batch norm alone on Gaussian data, by integration; B samples.

    With x the sample, m ~ N(0, 1 / (B-1)) the mean of its companions and q ~ chi2(B-2) their sum of squares around it:
    z = c u / sqrt((q + c u^2) / B), u = x - m, c = (B-1)/B. E z = 0 and E z^2 = 1, so that nu = (1 - S) / S with
    S = E E[z|x]^2.
    """
    x = torch.linspace(-5, 5, 101).double()
    m = torch.linspace(-6, 6, 121).double()
    q = torch.linspace(1e-6, size - 2 + 12 * (2 * size) ** 0.5 + 20, 1500).double()
    of_x, of_m, of_q = ((-(v.square()) / 2).exp() for v in (x, m, q.sqrt()))
    of_q = of_q * q ** (size / 2 - 2)
    c = (size - 1) / size
    u = x[:, None, None] - m[None, :, None] / (size - 1) ** 0.5
    z = c * u / ((q + c * u.square()) / size).sqrt()
    mean = torch.einsum("xmq,m,q->x", z, of_m / of_m.sum(), of_q / of_q.sum())
    signal = float((mean.square() * of_x).sum() / of_x.sum())
    return (1 - signal) / signal


@pytest.mark.parametrize(("size", "batches"), [(8, 2), (8, 5), (9, 3), (16, 2), (32, 2), (32, 1), (17, 1)])
def test_batch_norm_of_gaussian_data(size: int, batches: int) -> None:
    x = torch.randn(batches * size, 3000, generator=torch.Generator().manual_seed(size))
    model = nn.Sequential(nn.BatchNorm1d(3000, affine=False), nn.Linear(3000, 2))
    seen = profile(model, x, batch_size=size, batch_noise=True, level="light", seed=0)
    assert seen.batch_noise == pytest.approx(exact(size), rel=0.06)


def contiguous(size: int) -> nn.Module:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([(part - part.mean(0)) / part.std(0) for part in x.split(size)])

    return Parts()


@pytest.mark.parametrize("ghosts", [lambda: norm("ghost:size=8", channels=2000), lambda: contiguous(8)])
def test_ghost_batches_have_the_noise_of_their_size(ghosts: Callable[[], nn.Module]) -> None:
    """Whichever samples share a ghost: those at the same places do before and after."""
    x = torch.randn(96, 2000, generator=torch.Generator().manual_seed(3))
    model = nn.Sequential(ghosts(), nn.Linear(2000, 2))
    found = profile(model, x, batch_size=32, batch_noise=True, level="light", seed=0).batch_noise
    assert found == pytest.approx(exact(8), rel=0.1)


def test_ghost_batches_in_a_single_batch() -> None:
    x = torch.randn(32, 2000, generator=torch.Generator().manual_seed(3))
    model = nn.Sequential(norm("ghost:size=8", channels=2000), nn.Linear(2000, 2))
    found = profile(model, x, batch_noise=True, level="light", seed=0).batch_noise
    assert found == pytest.approx(exact(8), rel=0.15)


class OneSize(nn.Module):
    """Runs on batches of 16 only, as exported programs do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(2000, affine=False), nn.Linear(2000, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.view(16, 2000)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("batches", [1, 3])
def test_a_network_that_runs_on_one_batch_size_only(batches: int) -> None:
    x = torch.randn(16 * batches, 2000, generator=torch.Generator().manual_seed(4))
    found = profile(OneSize(), x, batch_size=16, batch_noise=True, level="light", seed=0).batch_noise
    assert found == pytest.approx(exact(16), rel=0.1)


@pytest.mark.parametrize("batches", [1, 2])
def test_random_masks_that_are_functions_are_not_batch_noise(batches: int) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Masked(), nn.ReLU(), nn.Linear(16, 10))
    assert noise(model, 16, 16 * batches) == 0


def test_samples_of_different_kinds_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(1000, affine=False), nn.Linear(2000, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.head(torch.cat((self.norm(left), self.norm(right)), 1))  # type: ignore[no-any-return]

    g = torch.Generator().manual_seed(5)
    x = {"left": torch.randn(48, 1000, generator=g), "right": torch.randn(48, 1000, generator=g)}
    found = profile(Two(), x, batch_size=16, batch_noise=True, level="light", seed=0).batch_noise
    assert found == pytest.approx(exact(16), rel=0.1)


def test_tokens() -> None:
    """[N, S, C] with statistics over samples and positions: positions of one sample are no companions."""
    x = torch.randn(48, 1, 2000, generator=torch.Generator().manual_seed(6)).expand(48, 5, 2000)
    model = nn.Sequential(norm("batch", channels=2000), nn.Flatten(), nn.Linear(10000, 2))
    found = profile(model, x, batch_size=16, batch_noise=True, level="light", seed=0).batch_noise
    assert found == pytest.approx(exact(16), rel=0.1)


@pytest.mark.parametrize("size", [2, 3])
def test_a_single_batch_too_small_to_halve_is_left_out(size: int) -> None:
    seen = profile(plain(nn.BatchNorm2d, 3), torch.randn(size, 1, 8, 8), batch_noise=True)
    assert seen.batch_noise is None
    assert f"a single batch of {size} samples has no half" in " ".join(seen.warnings)
    assert profile(plain(nn.BatchNorm2d, 3), torch.randn(2 * size, 1, 8, 8), batch_size=size).batch_noise is not None


def test_cost_in_passes() -> None:
    """One forward pass more for every two batches, or of half a batch where there is one."""
    rows: list[int] = []
    model = plain(nn.BatchNorm2d, 3)
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for samples, extra in ((32, [16]), (64, [32]), (128, [32, 32])):
        rows.clear()
        profile(model, torch.randn(samples, 1, 8, 8), batch_size=32, batch_noise=True)
        assert rows == [32] * (samples // 32) + extra


def test_measured_where_there_is_more_than_one_batch() -> None:
    model, x = plain(nn.BatchNorm2d, 3), torch.randn(16, 1, 8, 8)
    assert profile(model, x).batch_noise is None
    assert profile(model, x, batch_size=8, level="light").batch_noise is None
    assert profile(model, x, batch_size=8).batch_noise is not None
    assert profile(model, x, batch_noise=True).batch_noise is not None
