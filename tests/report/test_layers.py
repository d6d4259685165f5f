from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from layerscope.probe.records import LayerRecord, Profile
from layerscope.report.layers import Series, layer_axis, merge, series
from layerscope.verdict.trunk import trunk
from report.worlds import LAWS, profile


def renamed(made: Profile, old: str, new: str) -> Profile:
    return replace(made, records=tuple(replace(r, name=r.name.replace(old, new)) for r in made.records))


def without(made: Profile, name: str) -> Profile:
    return replace(made, records=tuple(r for r in made.records if not r.name.startswith(name)))


def test_the_axis_is_the_verdicts_own_main_path() -> None:
    for residual, unit in ((True, "block"), (False, "layer")):
        made = profile(LAWS[1], residual=residual)
        axis = layer_axis([[made]], "forward")
        assert [s.name for s in axis.sites] == [r.name for r in trunk(made).forward]
        assert axis.unit == unit


def test_stages_start_where_the_shape_changes() -> None:
    axis = layer_axis([[profile(LAWS[1], layers=27)]], "forward")
    assert axis.stages() == ((0, "32×32×32"), (9, "64×16×16"), (18, "128×8×8"))


def test_stages_go_by_resolution_where_every_layer_has_its_own_channels() -> None:
    made = profile(LAWS[1], layers=27)
    grown = replace(
        made, records=tuple(replace(r, shape=(32, 16 + i, *r.shape[2:])) for i, r in enumerate(made.records))
    )
    assert layer_axis([[grown]], "forward").stages() == ((0, "32×32"), (9, "16×16"), (18, "8×8"))
    wild = replace(made, records=tuple(replace(r, shape=(32, i + 1, i + 2, 3)) for i, r in enumerate(made.records)))
    assert layer_axis([[wild]], "forward").stages() == ()


def test_a_layer_that_one_choice_lacks_is_a_gap() -> None:
    full, holed = profile(LAWS[1], layers=9), without(profile(LAWS[2], layers=9), "stage2.1.")
    axis = layer_axis([[full], [holed]], "forward")
    names = [s.name for s in axis.sites]
    assert len(names) == 9
    row = axis.records[1][0]
    assert [i for i, r in enumerate(row) if r is None] == [names.index("stage2.1.act")]


def test_other_names_for_the_same_layers_are_matched_one_to_one() -> None:
    """A norm that holds the activation stands under another name, but the layers are as many."""
    axis = layer_axis([[profile(LAWS[1])], [profile(LAWS[2])], [renamed(profile(LAWS[6]), ".act", ".norm")]], "forward")
    assert all(s.name.endswith(".act") for s in axis.sites)
    assert [r.name for r in axis.records[2][0] if r] == [s.name.replace(".act", ".norm") for s in axis.sites]


def test_choices_without_profiles_take_no_part() -> None:
    axis = layer_axis([[], [profile(LAWS[1])]], "forward")
    assert axis.records[0] == ()
    assert len(axis.sites) == 57
    assert layer_axis([[], []], "forward").sites == ()


def test_a_site_is_found_by_its_name_its_inside_or_its_holder() -> None:
    axis = layer_axis([[profile(LAWS[1], residual=True, layers=27)]], "forward")
    assert axis.index("stage2.0") == 9
    assert axis.index("stage2.0.conv") == 9
    assert axis.index("stage2") == 9
    assert axis.index("nowhere") is None
    assert axis.index(None) is None


def test_series_is_median_and_range_over_seeds() -> None:
    made = series([[1.0, None, 4.0], [2.0, None, math.nan], [9.0, 5.0, 6.0]])
    assert made.middle[:2] == (2.0, 5.0)
    assert math.isnan(made.middle[2] or 0.0)
    assert made.low is not None
    assert made.low[0] == 1.0
    assert math.isnan(made.low[2] or 0.0)
    assert made.high is not None
    assert made.high[0] == 9.0


def test_one_seed_has_no_band() -> None:
    assert series([[1.0, 2.0]]) == Series((1.0, 2.0))


def test_relative_series_divide_each_seed_by_its_own_end() -> None:
    assert series([[4.0, 2.0], [30.0, 10.0]], relative_to_last=True).middle == (2.5, 1.0)
    assert series([[4.0, 2.0, 0.0]], relative_to_last=True).middle == (2.0, 1.0, 0.0)
    assert series([[0.0, 0.0]], relative_to_last=True).middle == (None, None)


names = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(names, names)
def test_merging_keeps_the_first_order_and_loses_nothing(one: list[str], other: list[str]) -> None:
    made = merge(one, other)
    assert sorted(made) == sorted({*one, *other})
    assert [n for n in made if n in one] == one


def test_repeated_records_of_one_name_do_not_break_the_axis() -> None:
    made = profile(LAWS[1], layers=6)
    record: LayerRecord = made.records[-1]
    twice = replace(made, records=(*made.records, replace(record, index=99)))
    axis = layer_axis([[twice], [made]], "forward")
    assert len(axis.records[0][0]) == len(axis.records[1][0]) == len(axis.sites)
