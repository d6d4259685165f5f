"""The HTML page of a comparison: small, whole, valid, escaped, and the same bytes every time."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from layerscope import report
from layerscope.probe.records import LayerRecord, Profile
from layerscope.report.looks import LABEL_LOOKS
from layerscope.verdict.types import Axis, Choice, Comparison, Verdict
from report.reading import check
from report.worlds import LAWS, comparison, profile, verdict

EVIL = '<script>alert("x")</script>&"\'\x1b[31m\udcff'


def written(result: object, tmp_path: Path) -> str:
    return report.write_html(result, tmp_path / "sub" / "page.html").read_text(encoding="utf-8")


def with_numbers(made: Profile, **numbers: float | None) -> Profile:
    return replace(made, records=tuple(replace(r, **numbers) for r in made.records))


def defaced(made: Profile, pairs: tuple[tuple[str, str], ...]) -> Profile:
    records = tuple(replace(r, name=EVIL + r.name, kind=EVIL) for r in made.records)
    return replace(made, source=EVIL, norm=EVIL, warnings=(EVIL,), versions=pairs, context=pairs, records=records)


def test_eight_norms_by_57_layers_by_3_seeds_fit_200_kb(tmp_path: Path) -> None:
    result = comparison(LAWS, seeds=3, layers=57)
    assert len(result.choices) == 8
    path = report.write_html(result, tmp_path / "page.html")
    assert path.stat().st_size <= 200_000
    page = check(path.read_text(encoding="utf-8"))
    assert any(a.get("data-n") == "57" for a in page.all("svg"))


def test_everything_a_reader_needs_is_there(tmp_path: Path) -> None:
    result = comparison()
    page = check(written(result, tmp_path))
    text = page.text
    for choice in result.choices:
        assert choice.norm in text
        assert choice.verdict.label in text
        for remedy in choice.verdict.remedies:
            assert remedy in text
    for needed in (
        result.command, "torch 2.13.0", "batch size 32", "seeds 0, 1, 2", "How to read", "What this cannot tell",
        "Of 24 held-out trainings", "the probe differs", "EvoNorm stands in the activation slot", "Good:", "Bad:",
    ):  # fmt: skip
        assert needed.lower() in text.lower(), needed


def test_the_same_result_is_the_same_bytes(tmp_path: Path) -> None:
    assert written(comparison(), tmp_path) == written(comparison(), tmp_path)
    assert "2026" not in written(comparison(), tmp_path)
    dated = report.write_html(comparison(), tmp_path / "d.html", date="2026-11-23").read_text(encoding="utf-8")
    assert "2026-11-23" in dated


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    result = comparison(LAWS[:2], seeds=1, layers=6)
    bad_axis = Axis("F", "bad", 2.0, 0.1, EVIL, EVIL)
    verdict_ = Verdict("fails", (bad_axis,), EVIL, (EVIL,), where=EVIL, track_record=EVIL)
    pairs = ((EVIL, EVIL),)
    choices = tuple(
        Choice(EVIL + str(i), verdict_, tuple(defaced(p, pairs) for p in c.profiles), (EVIL,))
        for i, c in enumerate(result.choices)
    )
    result = replace(result, source=EVIL, data=EVIL, command=EVIL, versions=((EVIL, EVIL),), choices=choices)
    for shown in (result, choices[0].profiles[0], choices[0].verdict):
        markup = written(shown, tmp_path)
        page = check(markup)
        assert len(page.all("script")) == 1
        assert "alert" in page.text or shown is not result
        assert "<script>alert" not in markup
        check(report.to_fragment(shown))


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 0.0, 1e308, 5e-324, -1.0])
def test_any_number_in_any_place_makes_a_valid_page(value: float | None, tmp_path: Path) -> None:
    numbers = ("variance", "ms", "cosine", "cosine_pooled", "grad_norm", "grad_scaled")
    law = LAWS[1]
    everywhere = with_numbers(profile(law, layers=7), **dict.fromkeys(numbers, value))
    everywhere = replace(everywhere, readout_cosine=value, readout_cosine_unpooled=value, batch_noise=value, loss=value)
    half = replace(profile(law, layers=7), records=(*everywhere.records[:5], *profile(law, layers=7).records[5:]))
    axes = tuple(Axis(n, "unknown", value, value, "text") for n in ("F", "I", "B", "N"))
    choices = (
        Choice("a", Verdict("unknown", axes, "reason"), (everywhere, half)),
        Choice("group:size=2", verdict(law), (half,)),
        Choice("group:size=4", verdict(law), (everywhere,)),
    )
    result = replace(comparison(LAWS[:1]), choices=choices)
    check(written(result, tmp_path))
    check(written(everywhere, tmp_path))
    for shown in (result, everywhere, choices[0].verdict):
        assert all(len(line) <= 80 for line in report.to_text(shown).splitlines())


def test_one_choice_one_layer_one_seed(tmp_path: Path) -> None:
    page = check(written(comparison(LAWS[1:2], seeds=1, layers=1), tmp_path))
    assert page.text.startswith("resnet56 · layerscope layerscope resnet56 batch should train well .")


def test_one_network_as_it_is_is_called_by_its_name(tmp_path: Path) -> None:
    law = replace(LAWS[1], norm="as is")
    assert " resnet56 should train well ." in check(written(comparison([law], seeds=1, layers=5), tmp_path)).text
    beside = check(written(comparison([law, LAWS[6]], seeds=1, layers=5), tmp_path)).text
    assert " as is and evonorm-s0 should train well ." in beside


def test_unknown_verdict_without_profiles(tmp_path: Path) -> None:
    lost = Choice("mystery", Verdict.unknown("it could not be built: 3 groups do not divide 32 channels"))
    alone = replace(comparison(LAWS[:1]), choices=(lost,))
    text = check(written(alone, tmp_path)).text
    assert "could not be judged" in text
    assert "3 groups do not divide 32 channels" in text
    assert "nothing to draw" in text
    beside = replace(alone, choices=(lost, *comparison(LAWS[:2]).choices))
    assert "mystery" in check(written(beside, tmp_path)).text


def test_no_choice_at_all(tmp_path: Path) -> None:
    empty = replace(comparison(LAWS[:1]), choices=(), seeds=(), versions=(), command="")
    assert "Nothing was compared" in check(written(empty, tmp_path)).text
    assert report.to_text(empty)


def test_a_profile_without_records(tmp_path: Path) -> None:
    bare = Profile("net", "as is", (), "light", 1, 1, (), None, None)
    check(written(bare, tmp_path))
    record = LayerRecord(0, "", "Conv2d", "conv", "conv", ())
    check(written(replace(bare, records=(record,)), tmp_path))


def test_many_choices_have_room_for_their_names(tmp_path: Path) -> None:
    laws = [replace(LAWS[i % 8], norm=f"group:size={i},eps=0.000{i}") for i in range(24)]
    page = check(written(comparison(laws, seeds=1, layers=5), tmp_path))
    assert len(page.all("article")) == 24


def test_the_frontier_needs_two_group_sizes(tmp_path: Path) -> None:
    named = {law.norm: law for law in LAWS}
    two = comparison([named["group:size=2"], named["group:size=8"], named["batch"]], seeds=1)
    assert "The trade-off in the group size" in check(written(two, tmp_path)).text
    one = comparison([named["group:size=2"], named["batch"]], seeds=1)
    assert "The trade-off in the group size" not in check(written(one, tmp_path)).text


def test_the_ring_stands_at_the_first_bad_layer(tmp_path: Path) -> None:
    page = check(written(comparison(LAWS[:1], seeds=1), tmp_path))
    rings = page.all("circle", "ls-first")
    assert rings[0]["cx"] == f"{100 * 4.5 / 57:.2f}%"


def test_small_curves_are_the_large_ones_again(tmp_path: Path) -> None:
    markup = written(comparison(seeds=1, layers=9), tmp_path)
    page = check(markup)
    uses = [a["href"] for a in page.all("use") if a.get("x") is None and "v-" not in str(a["href"])]
    assert len(uses) == 8 * 3 * 2
    ranked = comparison(seeds=1, layers=9).ranking()
    rows = markup.split("<article")[1:]
    for key, (choice, row) in enumerate(zip(ranked, rows, strict=True)):
        tone = LABEL_LOOKS[choice.verdict.label].tone
        assert len(re.findall(rf'<g class="{tone}"><use href="#ls\w+-{key}"/></g></svg>', row)) == 3


def test_notebook_fragment_is_scoped_and_whole() -> None:
    fragment = comparison(LAWS[:2], seeds=1, layers=5)._repr_html_()
    page = check(fragment)
    assert page.tags[0][0] == "div"
    style = re.sub(r"\([^()]*\)", "", fragment.split("<style>")[1].split("</style>")[0])
    selectors = [s for rule in style.split("}") for s in rule.split("{")[0].split(",") if s.strip()]
    loose = [s for s in selectors if ".ls" not in s and not s.strip().startswith("@")]
    assert not loose, loose


def test_comparison_shows_itself(tmp_path: Path) -> None:
    result: Comparison = comparison(LAWS[:2], seeds=1, layers=5)
    assert str(result) == report.to_text(result)
    assert result.to_html(tmp_path / "x.html").exists()


def test_the_keyboard_reaches_every_name_and_the_hit_rates_stand_once() -> None:
    made = comparison()
    html = str(report.to_fragment(made))
    names = re.findall(r'<h3><button type="button">([^<]+)</button></h3>', html)
    assert names == [choice.norm for choice in made.ranking()]
    assert html.count("Hit rate on held-out trainings") == 1
    assert "<details open>" not in html


def test_a_single_network_has_its_axes_in_the_open() -> None:
    html = str(report.to_fragment(comparison(LAWS[:1], seeds=1, layers=4)))
    assert html.count("<details open>") == 1
    assert "Hit rate on held-out trainings" not in html
