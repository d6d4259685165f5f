from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.errors import SpecError, did_you_mean
from layerscope.spec import Spec, parse_spec

names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
words = st.text(string.ascii_letters, min_size=1, max_size=6).filter(
    lambda w: w.lower() not in ("inf", "nan", "true", "false", "infinity")
)
values = st.one_of(st.booleans(), st.integers(-999, 999), st.floats(-1e6, 1e6), words)


@settings(deadline=None, max_examples=100)
@given(names, st.dictionaries(names, values, max_size=4))
def test_printing_and_parsing_are_inverse(name: str, params: dict[str, bool | int | float | str]) -> None:
    spec = Spec(name, tuple(params.items()))
    again = parse_spec(str(spec))
    assert again == spec
    assert [type(v) for _, v in again.params] == [type(v) for _, v in spec.params]


def test_values_keep_their_kind() -> None:
    assert parse_spec("a:i=3,f=0.5,b=true,w=fisher").kwargs == {"i": 3, "f": 0.5, "b": True, "w": "fisher"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "does not start with a name"),
        (":size=3", "does not start with a name"),
        ("group:32", "'32' is not  key=value"),
        ("group:", "is not  key=value"),
        ("group:size=", "is not  key=value"),
        ("group:size=3,size=4", "'size' is given twice"),
    ],
)
def test_unreadable_specs_say_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(SpecError, match=part):
        parse_spec(text)


def test_near_misses() -> None:
    assert did_you_mean("bacth", ["batch", "layer"]) == "did you mean 'batch'?"
    assert did_you_mean("zzz", ["batch", "layer"]) == "known: batch, layer"
