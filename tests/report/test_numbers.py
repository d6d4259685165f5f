from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (1.0, "1"), (25.04, "25"), (0.98765, "0.988"), (9999.0, "9999"), (12345.0, "1.2e4"),
        (1.4e17, "1.4e17"), (9.96e-5, "1.0e-4"), (-0.5, "-0.5"), (math.nan, "NaN"), (math.inf, "inf"),
        (-math.inf, "-inf"), (0.001, "0.001"), (5e-324, "4.9e-324"),
    ],
)  # fmt: skip
def test_short(value: float | None, text: str) -> None:
    assert numbers.short(value) == text


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_short_keeps_two_digits_and_stays_short(value: float) -> None:
    text = numbers.short(value)
    assert len(text) <= 9
    assert float(text) == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.714, "0.71"), (0.9684, "0.968"), (0.99961, "0.9996"), (1.0, "1.0000"), (-0.2, "-0.20"), (None, "–")],
)
def test_cosine_shows_more_digits_close_to_one(value: float | None, text: str) -> None:
    assert numbers.cosine(value) == text


@pytest.mark.parametrize(
    ("written", "half", "text"),
    [("0.97", 0.014, "±0.01"), ("0.97", 0.001, ""), ("×2.1e9", 3e8, "±3.0e8"), ("12", 0.2, ""), ("×1.16", None, ""),
     ("inf", math.nan, ""), ("1.5", math.inf, "")],
)  # fmt: skip
def test_spread_has_the_decimals_of_its_number(written: str, half: float | None, text: str) -> None:
    assert numbers.spread(written, half) == text


@pytest.mark.parametrize(("exponent", "text"), [(-2, "0.01"), (0, "1"), (3, "1000"), (4, "10⁴"), (-12, "10⁻¹²")])
def test_powers_on_an_axis(exponent: int, text: str) -> None:
    assert numbers.power(exponent) == text


@pytest.mark.parametrize(("value", "text"), [(0.41, "0.4 s"), (43.1, "43 s"), (200.0, "3 min 20 s")])
def test_seconds(value: float, text: str) -> None:
    assert numbers.seconds(value) == text
