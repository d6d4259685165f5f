"""The activation study: its statistics by closed form, its reading on a small case."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted import distortion
from layerscope.methods.encrypted.polynomials import COEFFICIENTS, Polynomial


def test_polynomials_by_their_formulas():
    z = torch.linspace(-3, 3, 41, dtype=torch.float64)
    formulas = {
        "square": z**2,
        "quad8": z**2 / 8 + z / 4 + 0.5,
        "line10": z + z**2 / 10,
        "line1": z + z**2,
        "herm2": 0.398942 + 0.5 * z + 0.199471 * (z**2 - 1),
        "herm4": 0.398942 + 0.5 * z + 0.199471 * (z**2 - 1) - 0.0166226 * (z**4 - 6 * z**2 + 3),
    }
    assert set(formulas) == set(COEFFICIENTS)
    for name, expected in formulas.items():
        assert torch.allclose(Polynomial(name)(z), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["herm2", "herm4"])
def test_hermite_fits_are_the_least_squares_fits_under_a_normal(name):
    """No nearby coefficients do better against the ReLU under N(0, 1) (numerical integration)."""
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    weight = weight / weight.sum()
    degree = len(COEFFICIENTS[name]) - 1
    powers = torch.stack([z**k for k in range(degree + 1)], 1)
    gram = powers.T @ (powers * weight[:, None])
    best = torch.linalg.solve(gram, powers.T @ (weight * z.clamp(min=0)))
    assert torch.allclose(best, torch.tensor(COEFFICIENTS[name], dtype=torch.float64), atol=2e-5)


def test_tail_statistics_of_known_distributions():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, generator=g).double()
    read = distortion.read
    same = distortion.tails(0, read(normal), read(normal))
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert (same.mean_shift, same.variance_ratio) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert same.kurtosis == pytest.approx(3.0, rel=0.05)
    shifted = distortion.tails(0, read(normal + 1), read(normal))
    assert shifted.mean_shift == pytest.approx(1.0)
    assert shifted.kl == pytest.approx(0.5, rel=0.05)  # KL of N(1, 1) from N(0, 1)
    assert distortion.tails(0, read(normal**2), read(normal)).kurtosis == pytest.approx(
        15.0, rel=0.1
    )  # chi-square of 1 degree


def test_huge_and_non_finite_values_are_reported_not_hidden():
    z = torch.tensor([1e100, -1e100, 1.0, 2.0, float("inf"), float("nan")], dtype=torch.float64)
    read = distortion.read
    found = distortion.tails(0, read(z), read(torch.randn(100)))
    assert found.finite_fraction == pytest.approx(4 / 6)
    assert math.isfinite(found.kurtosis)
    assert found.absmax == 1e100
    lost = distortion.tails(0, read(torch.full((4,), float("nan"))), read(z))
    assert (lost.finite_fraction, lost.kl) == (0, math.inf)


def test_kurtosis_of_a_square_grows_with_depth_before_training():
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    square = [distortion.init_kurtosis(d, "square", x, 0) for d in (2, 4, 6)]
    relu = [distortion.init_kurtosis(d, "relu", x, 0) for d in (2, 4, 6)]
    assert square[0] < square[1] < square[2]
    assert square[2] > 10 * relu[2]


def test_a_small_study_has_every_row():
    g = torch.Generator().manual_seed(0)
    data = torch.randn(60, 1, 8, 8, generator=g), torch.randint(0, 3, (60,), generator=g)
    before = torch.get_rng_state()
    study = she.study_activations(
        data, data, depths=(2,), trained=("square",), swapped=("herm2",), epochs=1, batch_size=20
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert [(t.activation, t.mode) for t in study.trials] == [
        ("relu", "trained"), ("square", "trained"), ("herm2", "swapped")
    ]  # fmt: skip
    assert study.of(2, "relu")[0].last.kl == pytest.approx(0, abs=1e-9)
    assert all(t.foldable and len(t.layers) == 2 for t in study.trials)


def test_block_net_can_be_quantised():
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = distortion.BlockNet(4, "relu", (1, 8, 8), 3)
    with torch.no_grad():
        net(x)
    net.eval()
    assert she.quantize(net, x)(x[:1]).shape == (1, 3)
    assert isinstance(distortion.activation_of("relu"), nn.ReLU)


@pytest.mark.slow
def test_square_collapses_with_depth_and_its_tails_are_why():
    """One epoch on 2000 images: at depth 6 kurtosis above ten times the ReLU net's and an accuracy gap above 0.3."""
    from layerscope import data
    from layerscope.errors import DataError

    try:
        found = data.load("fashion-mnist", "train")
    except DataError as error:
        pytest.skip(f"Fashion-MNIST is not on this machine: {error}")
    x = (torch.nn.functional.avg_pool2d((found.x[:3000] + 1) / 2, 2) - 0.286) / 0.32
    train, test = (x[:2000], found.y[:2000]), (x[2000:], found.y[2000:3000])
    study = she.study_activations(train, test, depths=(2, 6), trained=("square",), swapped=(), epochs=1, batch_size=50)
    relu, square = study.of(6, "relu")[0], study.of(6, "square")[0]
    assert square.last.kurtosis > 10 * relu.last.kurtosis
    assert relu.accuracy - square.accuracy > 0.3
    shallow = study.of(2, "relu")[0].accuracy - study.of(2, "square")[0].accuracy
    assert shallow < relu.accuracy - square.accuracy
