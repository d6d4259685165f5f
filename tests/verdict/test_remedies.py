from __future__ import annotations

import pytest

from layerscope.verdict.axes import _number
from layerscope.verdict.remedies import remedies
from layerscope.verdict.types import Axis, AxisName, Level


def axis(name: AxisName, level: Level, value: float = 1.0) -> Axis:
    return Axis(name, level, value, None, "")


@pytest.mark.parametrize(
    ("norm", "told"),
    [("layer", "group:size=4"), ("group:size=32", "group:size=4"), ("group:size=8", "group:size=4"),
     ("group:size=4", "group:size=2"), ("group:size=2", None), ("group:size=1", None)],
)  # fmt: skip
def test_smaller_groups_are_advised_while_there_are_any(norm: str, told: str | None) -> None:
    advice = remedies((axis("I", "bad"),), residual=True, tokens=False, norm=norm, tiny_sets=False)
    assert "batch at 16 samples" in advice[0]
    assert (told in advice[0]) if told else ("group:" not in advice[0])


def test_an_explosion_hides_everything_else() -> None:
    axes = (axis("F", "bad", 2.0), axis("I", "bad"), axis("N", "bad"))
    advice = remedies(axes, residual=True, tokens=False, norm="weight", tiny_sets=False)
    assert advice[0].startswith("SkipInit")
    assert any("branch only" in line for line in advice)
    assert not any("larger batch" in line for line in advice)


def test_a_vanishing_signal_is_not_told_to_use_skipinit() -> None:
    advice = remedies((axis("F", "bad", 0.2),), residual=False, tokens=False, norm="dyt", tiny_sets=False)
    assert not any("SkipInit" in line for line in advice)


def test_nothing_to_mend_no_advice() -> None:
    good = tuple(axis(n, "good") for n in ("F", "I", "B", "N"))
    assert remedies(good, residual=False, tokens=False, norm="batch", tiny_sets=False) == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (445.0, "445"), (3.3e15, "3.3e15"), (1.234, "1.23"), (2e-7, "2.0e-7"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_in_sentences(value: float, text: str) -> None:
    assert _number(value) == text


def test_what_the_pooling_took_away_is_centred_before_the_classifier_and_what_is_there_is_not_advised() -> None:
    pooled = Axis("I", "bad", 0.01, None, "samples have cosine 0.990 after pooling: ...")
    advice = remedies((pooled,), residual=False, tokens=False, norm="batch", tiny_sets=False)
    assert "between the pooling and the classifier" in advice[0]
    assert not any("batch at 16" in line for line in advice)
    unpooled = Axis("I", "bad", 0.01, None, "samples have cosine 0.990 at the classifier input: ...")
    advice = remedies((unpooled,), residual=False, tokens=False, norm="layer", tiny_sets=False)
    assert not any("between the pooling" in line for line in advice)


def test_one_layer_of_the_wrong_scale_is_to_be_initialized_again() -> None:
    jump = Axis("F", "bad", 1.1, None, "one layer, 10, changes the second moment x9.8e3", "10")
    assert "initialize that layer" in remedies((jump,), residual=False, tokens=False, norm="none", tiny_sets=False)[0]
