from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.report.scales import Kind, Scale, fit, nines

KINDS: tuple[Kind, ...] = ("linear", "log", "nines")
anything = st.none() | st.floats()


@given(st.sampled_from(KINDS), st.lists(anything, max_size=6), anything)
def test_every_value_has_a_place_inside_or_none(kind: Kind, values: list[float | None], value: float | None) -> None:
    scale = fit(kind, values)
    assert scale.low < scale.high
    place = scale.at(value)
    assert place is None or 0 <= place <= 1


@given(st.sampled_from(KINDS), st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=6))
def test_order_is_kept_and_data_lie_inside(kind: Kind, values: list[float]) -> None:
    scale = fit(kind, values)
    places = [scale.at(v) or 0.0 for v in sorted(values)]
    assert places == sorted(places)


@given(st.sampled_from(KINDS), st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=6))
def test_ticks_are_few_and_on_the_axis(kind: Kind, values: list[float]) -> None:
    scale = fit(kind, values)
    ticks = scale.ticks(6)
    assert len(ticks) <= 13
    assert all(scale.at(v) is not None for v, _ in ticks)


def test_log_places_decades_evenly() -> None:
    scale = Scale("log", 1e-2, 1e2)
    assert [scale.at(v) for v in (1e-2, 1e-1, 1, 10, 100)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_log_treats_zero_as_the_floor_and_negative_as_nothing() -> None:
    scale = Scale("log", 1, 100)
    assert scale.at(0.0) == 0.0
    assert scale.at(-1.0) is None
    assert scale.at(math.inf) == 1.0
    assert scale.at(math.nan) is None


def test_nines_are_even_steps_toward_one() -> None:
    assert [nines(c) for c in (0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1, 2, 3])
    assert nines(1.0) == nines(1.5) == pytest.approx(5)


def test_huge_range_has_labelled_powers() -> None:
    labels = [text for _, text in fit("log", [0.4, 1.3e18]).ticks()]
    assert 3 <= len(labels) <= 7
    assert labels[-1].startswith("10")


def test_one_value_gets_two_decades() -> None:
    scale = fit("log", [5.0])
    assert scale.high / scale.low == pytest.approx(100)


def test_linear_ticks_are_round() -> None:
    assert [text for _, text in fit("linear", [0.0, 1.0], include=(0.0, 1.0)).ticks(5)] == [
        "0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1",
    ]
