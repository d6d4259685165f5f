"""Growth fits: exact laws are recognized, and no list of numbers breaks them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope import quantities as q


def test_linear_law() -> None:
    growth = q.fit_growth([1 + 0.5 * i for i in range(12)])
    assert growth.slope == pytest.approx(0.5)
    assert growth.r2_linear == pytest.approx(1)
    assert growth.r2_log < 0.98
    assert not growth.exponential
    assert growth.spread == pytest.approx(6.5)


def test_exponential_law() -> None:
    growth = q.fit_growth([3 * 2.0**i for i in range(12)])
    assert growth.factor == pytest.approx(2)
    assert growth.r2_log == pytest.approx(1)
    assert growth.exponential


def test_constant_series_is_both() -> None:
    growth = q.fit_growth([0.7] * 6)
    assert (growth.slope, growth.factor) == (pytest.approx(0), pytest.approx(1))
    assert growth.r2_linear == growth.r2_log == 1
    assert not growth.exponential


def test_values_beyond_squaring() -> None:
    growth = q.fit_growth([10.0 ** (30 * i) for i in range(10)])
    assert growth.factor == pytest.approx(1e30)
    assert growth.r2_log == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_unusable_values_make_the_logarithmic_side_nan(bad: float) -> None:
    growth = q.fit_growth([1.0, 2.0, bad, 4.0])
    assert math.isnan(growth.factor)
    assert math.isnan(growth.r2_log)
    assert not growth.exponential


def test_short_series() -> None:
    assert math.isnan(q.fit_growth([1.0, 2.0]).slope)
    assert q.fit_growth([1.0, 2.0]).spread == 2
    assert math.isnan(q.fit_growth([]).spread)


def test_tail_factor_of_a_linear_law_and_of_doubling() -> None:
    assert q.tail_factor([[float(v) for v in range(1, 10)]]) == pytest.approx((9 / 5) ** (1 / 4))
    assert q.tail_factor([[1.0, 2.0, 4.0, 8.0]]) == pytest.approx(2)
    assert q.tail_factor([[5.0] * 4, [1.0] * 3]) == pytest.approx(1)


def test_tail_factor_leaves_out_the_step_between_stages() -> None:
    assert q.tail_factor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]]) == pytest.approx(2)


def test_tail_factor_edges() -> None:
    assert math.isnan(q.tail_factor([]))
    assert math.isnan(q.tail_factor([[1.0], [2.0]]))
    assert q.tail_factor([[1.0, 1.0, math.inf]]) == math.inf
    assert q.tail_factor([[1.0, 1.0, 0.0]]) == 0
    assert math.isnan(q.tail_factor([[1.0, 1.0, math.nan]]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=12))
def test_any_list_gives_numbers(values: list[float]) -> None:
    growth = q.fit_growth(values)
    for r2 in (growth.r2_linear, growth.r2_log):
        assert math.isnan(r2) or 0 <= r2 <= 1
    q.tail_factor([values])


def test_growth_and_gradient_import_no_torch() -> None:
    code = (
        "import sys, layerscope.quantities.growth, layerscope.quantities.gradient\n"
        "import layerscope.quantities as q; q.fit_growth\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
