from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope import report
from layerscope.errors import LayerscopeError
from layerscope.report.charts.frame import Guide, spread_out
from layerscope.report.charts.heat import draw_row, shade
from layerscope.report.charts.lines import Line, area, even, simplify, trace
from layerscope.report.document import page
from report.reading import check

series = st.lists(st.none() | st.floats(), min_size=1, max_size=12)


def whole(*parts: object) -> str:
    return page("t", *parts)


@given(st.lists(st.floats(0, 200), max_size=12))
def test_labels_never_overlap_and_stay_inside_where_there_is_room(wanted: list[float]) -> None:
    places = spread_out(wanted, 15, 0, 200)
    ordered = sorted(places)
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert all(0 <= p <= 200 + 1e-9 for p in places)
    assert sorted(range(len(wanted)), key=lambda i: (wanted[i], i)) == sorted(
        range(len(places)), key=lambda i: places[i]
    )


def test_labels_with_room_stay_where_they_want() -> None:
    assert spread_out([10, 100, 50], 15, 0, 200) == [10, 100, 50]


def test_a_missing_value_is_a_gap_and_a_lonely_one_a_dot() -> None:
    curve, dots = trace(even(5), [0.0, 0.5, None, 1.0, None], 100)
    assert curve == "M100 200l200-100"
    assert dots == "M700 0h0"


def test_a_band_needs_a_pixel_and_closes_itself() -> None:
    places = even(2)
    assert area(places, [0.5, 0.5], [0.5, 0.501], 100) == ""
    assert area(places, [0.2, 0.2], [0.4, None], 100) == ""
    assert area(places, [0.2, 0.2], [0.4, 0.6], 100) == "M250 120l500-40 0 80-500 0z"


@given(st.lists(st.integers(0, 400), min_size=2, max_size=60))
def test_simplified_lines_pass_within_one_unit_of_every_point(ys: list[int]) -> None:
    points = [(10 * i, y) for i, y in enumerate(ys)]
    kept = simplify(points)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    for x, y in points:
        (x0, y0), (x1, y1) = next((a, b) for a, b in itertools.pairwise(kept) if a[0] <= x <= b[0])
        assert abs(y0 + (y1 - y0) * (x - x0) / (x1 - x0) - y) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("strength", "name"),
    [(0.0, "h12"), (1.0, "h24"), (-1.0, "h0"), (9.0, "h24"), (None, None), (math.nan, "hx"), (0.5, "h18")],
)
def test_shade(strength: float | None, name: str | None) -> None:
    assert shade(strength) == name


def test_cells_that_are_not_a_number_say_so() -> None:
    row = draw_row(["h1", "hx", "hx", "h2"], 0, 0)
    assert row.count(">NaN<") == 1
    assert 'class="ls-nan" x="50%"' in row


def test_equal_neighbours_share_one_cell() -> None:
    row = draw_row(["h1", "h1", None, "h1", "h2"], 0, 0)
    assert 'class="h1" d="M0 0h2v1H0zM3 0h1v1H3z"' in row
    assert 'class="h2" d="M4 0h1v1H4z"' in row


@given(st.lists(series, min_size=1, max_size=4), st.sampled_from(["linear", "log", "nines"]))
def test_any_numbers_make_a_valid_line_chart(values: list[list[float | None]], kind: str) -> None:
    width = min(map(len, values))
    lines = [Line(f"<{i}>", v[:width], v[:width], v[:width]) for i, v in enumerate(values)]
    check(whole(report.line_chart(lines, y_kind=kind, guides=[Guide(0.5, "half")])))


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=6))
def test_any_numbers_make_a_valid_scatter(places: list[tuple[float, float]]) -> None:
    points = [report.Point(f"p{i}", x, y) for i, (x, y) in enumerate(places)]
    picture, table = report.scatter(points, x_kind="log", path=range(len(points)))
    check(whole(picture, table))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20)), max_size=20))
def test_names_of_a_scatter_do_not_overlap(places: list[tuple[int, int, int]]) -> None:
    picture, _ = report.scatter([report.Point("m" * n, x, y) for x, y, n in places])
    found = re.findall(r'ls-name" x="(\d+)" y="([\d.]+)" dy=".35em">(m+)</text></svg>', picture)
    at = re.findall(r'x="([\d.]+)%" class="[^"]*" data-c=', picture)
    assert len(found) == len(at) == len(places)
    boxes = [
        (6.4 * float(x) + int(beside), float(y), 7 * len(name)) for x, (beside, y, name) in zip(at, found, strict=True)
    ]
    for (left, top, wide), (other, height, _) in itertools.permutations(boxes, 2):
        assert not left <= other < left + wide or abs(top - height) > 13.8


@given(st.lists(st.tuples(st.text(max_size=5), st.none() | st.floats()), max_size=6))
def test_any_numbers_make_valid_bars(items: list[tuple[str, float | None]]) -> None:
    page_ = check(whole(report.bars(items)))
    widths = [re.search(r"width:([\d.]+)%", a["style"] or "") for a in page_.all("i") if "style" in a]
    assert all(w is not None and 0 <= float(w[1]) <= 100 for w in widths)


def test_infinite_values_are_named() -> None:
    assert "∞" in report.line_chart([Line("a", [1.0, math.inf, 2.0])], y_kind="log")


def test_a_line_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(LayerscopeError, match="line 'b' has 2 values for 3 places"):
        report.line_chart([Line("b", [1.0, 2.0])], x=[1, 2, 3])


def test_long_series_keep_a_readable_table() -> None:
    chart = report.line_chart([Line("loss", [math.sin(i / 50) for i in range(5000)])], x_title="step", y_title="loss")
    page_ = check(whole(chart))
    assert 100 < len(page_.all("tr")) < 260
    assert len(chart) < 30_000


def test_heatmap_checks_its_names() -> None:
    with pytest.raises(LayerscopeError, match="do not match"):
        report.heatmap([[1.0]], rows=["a", "b"], columns=["x"], strength=lambda v: v)
    made = report.heatmap([[1.0, None], [math.nan, 0.0]], rows=["a", "<b>"], columns=["x", "y"], strength=lambda v: v)
    assert "&lt;b&gt;" in check(whole(made)).text or "<b>" in check(whole(made)).text


def test_images_must_be_inside_the_page() -> None:
    uri = "data:image/png;base64,iVBORw0KGgo="
    made = report.images(report.image_with_mask(uri, uri, alt="a cat", caption="<kept>"))
    assert check(whole(made)).all("img")[0]["alt"] == "a cat"
    with pytest.raises(LayerscopeError, match="data:image"):
        report.image_with_mask("https://example.org/x.png", alt="")


def test_a_figure_with_several_views_needs_no_script() -> None:
    views = [
        report.View("one", "first", report.Html("<p>1</p>")),
        report.View("two", "second", report.Html("<p>2</p>")),
    ]
    page_ = check(whole(report.figure("Title", views, "Good: low.")))
    radios = page_.all("input")
    assert [("checked" in r) for r in radios] == [True, False]
    assert len({r["name"] for r in radios}) == 1
