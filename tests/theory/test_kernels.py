import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.theory import kernels


def test_kappa_at_the_ends():
    assert kernels.kappa(0.0) == pytest.approx(1 / math.pi)
    assert kernels.kappa(1.0) == pytest.approx(1.0)
    assert kernels.kappa(-1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("r", [-0.7, 0.0, 0.3, 0.9])
def test_kappa_is_the_cosine_of_relu_features(r):
    z = np.random.default_rng(0).standard_normal((2, 400_000))
    u, v = z[0], r * z[0] + math.sqrt(1 - r * r) * z[1]
    relu = np.maximum([u, v], 0.0)
    assert kernels.kappa(r) == pytest.approx((relu[0] * relu[1]).mean() / (relu[0] ** 2).mean(), abs=5e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.99, 0.99))
def test_kappa_slope_is_its_derivative(r):
    h = 1e-6
    numeric = (kernels.kappa(r + h) - kernels.kappa(r - h)) / (2 * h)
    assert kernels.kappa_slope(r) == pytest.approx(float(numeric), abs=1e-4)


def test_iterates_of_the_uncentred_map():
    cosines = kernels.cosine_by_depth(81, 0.0)
    # from 1/pi, so that entry l is the cosine after l further layers
    assert [round(cosines[depth], 3) for depth in (5, 10, 20, 40, 80)] == [0.777, 0.885, 0.952, 0.983, 0.995]


def test_collapse_law_is_only_asymptotic():
    cosines = kernels.cosine_by_depth(40_001)
    for depth in (10, 80):
        assert (1 - cosines[depth]) * depth**2 < 0.8 * 44.4
    assert (1 - cosines[40_000]) == pytest.approx(float(kernels.collapse_law(40_000)), rel=0.02)


def test_centred_map_has_the_fixed_points_and_slopes_of_batch_norm():
    assert kernels.centred_map(0.0) == pytest.approx(0.0)
    assert kernels.centred_map(1.0) == pytest.approx(1.0)
    h = 1e-5
    at_zero = float(kernels.centred_map(h) - kernels.centred_map(-h)) / (2 * h)
    assert at_zero == pytest.approx((math.pi / 2) / (math.pi - 1), abs=1e-4)
    r = 0.99
    for _ in range(60):
        r = float(kernels.centred_map(r))
    assert abs(r) < 1e-4


def test_finite_set_rate():
    table = {4: 1.713, 6: 1.399, 8: 1.327, 16: 1.257, 32: 1.232, 64: 1.221, 128: 1.216, 256: 1.214}
    for m, rate in table.items():
        assert kernels.finite_set_rate(m) == pytest.approx(rate, abs=1e-3)
    assert kernels.finite_set_rate(3) == math.inf
    assert kernels.finite_set_rate(1e9) == pytest.approx(1.2112, abs=1e-4)


def test_closed_group_form_is_exact_at_both_ends():
    r = np.linspace(0, 1, 11)
    np.testing.assert_allclose(kernels.group_map(r[:-1], 1), 0.0, atol=1e-12)
    np.testing.assert_allclose(kernels.group_map(r, 1e12), r, atol=1e-9)
    cosine, rate = kernels.group_cosine_and_rate(20, 1e12)
    assert (cosine, rate) == (pytest.approx(kernels.cosine_by_depth(20)[-1]), pytest.approx(1.0))
    assert kernels.group_cosine_and_rate(20, 8)[0] == pytest.approx(0.854, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(st.floats(-6, 6))
def test_normal_cdf_against_the_error_function(z):
    assert float(kernels.normal_cdf(z)) == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=1e-7)
