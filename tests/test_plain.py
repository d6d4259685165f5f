from __future__ import annotations

import json
import math

import pytest

from layerscope.plain import from_plain, to_plain
from layerscope.probe.records import LayerRecord, Profile
from layerscope.verdict.types import Analytic, Axis, Choice, Comparison, Verdict


def a_comparison() -> Comparison:
    record = LayerRecord(0, "conv", "Conv2d", "conv", "conv", (4, 2, 3, 3), variance=math.inf, ms=math.nan, cosine=0.5)
    profile = Profile("net", "batch", (record,), "light", 4, 1, (1, 8, 8), 0, math.nan, versions=(("torch", "x"),))
    verdict = Verdict("fails", (Axis("F", "bad", 2.0, None, "grows", "conv"),), "why", ("fix",), "conv",
                      Analytic(0.3, None, "linear", None, ""))  # fmt: skip
    return Comparison("net", "digits", 4, (0, 1), (1, 8, 8), (Choice("batch", verdict, (profile,)),), 0.5)


def test_round_trip_through_json_loses_nothing() -> None:
    before = a_comparison()
    text = json.dumps(to_plain(before), allow_nan=False)
    after = from_plain(Comparison, json.loads(text))
    assert repr(after) == repr(before)  # repr, because NaN is not equal to itself
    assert hash(after) is not None


def test_unknown_keys_of_a_later_version_are_ignored() -> None:
    data = to_plain(Verdict.unknown("no data")) | {"new_field": 3}
    assert from_plain(Verdict, data) == Verdict.unknown("no data")


def test_tensors_and_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="object is not a plain value"):
        to_plain({"a": object()})
