"""Text reports: 80 columns, ASCII, the table first."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope import report
from layerscope.report.styled import WIDTH, Lines, Piece, ascii_only, squeeze, squeeze_apart
from layerscope.verdict.types import Axis, Choice, Verdict
from report.worlds import LAWS, comparison, profile, verdict


def is_plain(text: str) -> None:
    assert all(len(line) <= WIDTH for line in text.splitlines()), max(text.splitlines(), key=len)
    assert text.isascii()
    assert "\x1b" not in text


def test_a_comparison_is_a_table_and_then_reasons() -> None:
    text = report.to_text(comparison())
    is_plain(text)
    table, *rest = text.split("\n\n")[1:]
    rows = table.splitlines()
    assert rows[0].split() == ["norm", "verdict", "growth", "cosine", "gradient", "noise"]
    assert [r.split()[0] for r in rows[1:3]] == ["batch", "evonorm-s0"]
    assert rows[-1].startswith("weight") or rows[-1].startswith("none")
    assert rows[1] == "batch         + healthy    x1.04 +   0.72 +   x15.4 ~  0.17 +"
    assert len({len(r) for r in rows[1:]}) == 1
    assert any(part.startswith("none: fails\n  Activations explode") for part in rest)
    assert not any(part.startswith("batch: ") for part in rest)


def test_one_choice_is_explained_also_when_it_is_healthy() -> None:
    text = report.to_text(comparison(LAWS[1:2]))
    is_plain(text)
    assert "batch: healthy" in text


def test_long_names_are_squeezed_in_the_middle() -> None:
    law = replace(LAWS[1], norm="switchable:momentum=0.05,size=16,eps=0.00001,using=batch+layer+instance")
    text = report.to_text(comparison([law, LAWS[0]]))
    is_plain(text)
    assert ".." in text.split("\n\n")[1]


def test_verdict_names_axes_theory_and_record() -> None:
    text = report.to_text(verdict(LAWS[0]))
    is_plain(text)
    for needed in ("x fails", "x Forward", "+ Noise", "theory: Cosine 0.996", "The probe agrees", "21 went as told"):
        assert needed in text


def test_unknown_verdict_is_only_its_reason() -> None:
    assert report.to_text(Verdict.unknown("no gradient")) == "? unknown\n  No gradient."


def test_profile_lists_the_main_path() -> None:
    text = report.to_text(profile(LAWS[1], layers=12))
    is_plain(text)
    assert text.count(".act") == 12
    assert "cosine at the classifier input 0.72" in text


def test_a_long_source_costs_no_fact() -> None:
    made = replace(comparison(LAWS[:1], seeds=1, layers=4), source="path/to/a/long/file/name.py:make_the_model" * 2)
    text = report.to_text(made)
    is_plain(text)
    assert "seed 0" in text


def test_a_deep_profile_is_thinned_but_keeps_both_ends() -> None:
    text = report.to_text(profile(LAWS[1], layers=157))
    is_plain(text)
    assert text.count(".act") == 40
    assert "stage1.0.act" in text
    assert "stage3.51.act" in text
    assert "(40 of 157 layers" in text


@given(st.text(max_size=200), st.sampled_from([None, 1.0, 1e300, math.nan, math.inf, -math.inf]))
def test_any_words_and_numbers_fit(words: str, value: float | None) -> None:
    axes = tuple(Axis(n, "bad", value, value, words, words) for n in ("F", "I", "B", "N"))
    made = Verdict("slow", axes, words, (words, words), where=words, track_record=words)
    base = comparison(LAWS[:1], seeds=1, layers=3)
    result = replace(base, source=words, data=words, choices=(Choice(words, made, (), (words,)),))
    for shown in (result, made, replace(base.choices[0].profiles[0], source=words, warnings=(words,))):
        is_plain(report.to_text(shown))


@pytest.mark.parametrize(
    ("text", "plain"),
    [("×2 → café", "x2 -> cafe"), ("a\x1b[31mb\nc", "a [31mb c"), ("ν ≥ 0.5", "nu >= 0.5"), ("日本", "\\u65e5\\u672c")],
)
def test_ascii_only(text: str, plain: str) -> None:
    assert ascii_only(text) == plain


@given(st.text(alphabet="abcdefgh", max_size=40), st.integers(5, 30))
def test_squeezing_keeps_both_ends(text: str, width: int) -> None:
    made = squeeze(text, width)
    assert len(made) <= width
    assert made[0:1] == text[0:1]
    assert made[-1:] == text[-1:]


def test_a_line_that_is_too_long_is_cut() -> None:
    out = Lines()
    out.add(Piece("x" * 70, "bold"), "y" * 70)
    assert str(out) == "x" * 70 + "y" * 10


def test_a_score_against_the_labels_is_said_once() -> None:
    def scored(*scores: float) -> str:
        given = comparison()
        choices = [
            replace(c, verdict=replace(c.verdict, score=s)) for c, s in zip(given.ranking(), scores, strict=False)
        ]
        return report.to_text(replace(given, choices=tuple(choices)))

    last = comparison().ranking()[-1]
    worst = [0.76, *(0.5 for _ in comparison().choices[2:]), 0.78]
    text = scored(*worst)
    is_plain(text)
    flat = " ".join(text.split())
    assert f"disagree, as on {last.norm} ({last.verdict.label}, 0.78) and" in flat
    assert flat.count("disagree, as on") == 1
    assert "disagree" not in scored(*(0.9 - 0.01 * i for i in range(len(worst))))
    assert "disagree" not in scored(*(0.5 for _ in worst))


@given(
    texts=st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=30), max_size=6),
    width=st.integers(8, 30),
)
def test_names_squeezed_together_fit_and_are_at_least_as_distinct(texts: list[str], width: int) -> None:
    made = squeeze_apart(texts, width)
    assert set(made) == set(texts)
    assert all(len(short) <= width for short in made.values())
    assert all(short == text for text, short in made.items() if len(text) <= width)
    assert len(set(made.values())) >= len({squeeze(text, width) for text in texts})


def test_names_that_differ_in_one_place_stay_apart() -> None:
    names = [f"stages.{i}.blocks.0.norm{k}" for i in (1, 2, 3) for k in (1, 2)]
    assert len(set(squeeze_apart(names, 12).values())) == 6
