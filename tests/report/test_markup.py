from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.report.markup import Html, el, esc, join
from report.reading import Page


def test_text_is_escaped_and_markup_is_not() -> None:
    assert el("p", "<b>", Html("<i>x</i>"), 3) == "<p>&lt;b&gt;<i>x</i>3</p>"


def test_attributes_are_always_text() -> None:
    assert el("p", title=Html('"><script>')) == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_attribute_names_and_flags() -> None:
    made = el("input", class_="a", data_n=3, checked=True, hidden=False, id=None)
    assert made == '<input class="a" data-n="3" checked>'


def test_empty_shapes_close_themselves() -> None:
    assert el("path", d="M0 0") == '<path d="M0 0"/>'
    assert el("div") == "<div></div>"


def test_join_escapes_parts_and_separator() -> None:
    assert join(["a", Html("<b>"), "<"], " & ") == "a &amp; <b> &amp; &lt;"


@pytest.mark.parametrize("bad", ["\x00", "\x1b[31m", "\udcff"])
def test_what_html_cannot_hold_is_replaced(bad: str) -> None:
    made = esc(f"a{bad}b")
    made.encode("utf-8")
    assert not any(ord(c) < 32 for c in made)


@given(st.text())
def test_any_text_survives_as_text(text: str) -> None:
    page = Page(el("p", text, title=text))
    assert [tag for tag, _ in page.tags] == ["p"]
    assert "<" not in esc(text)
    assert html.unescape(esc(text)) == page.tags[0][1]["title"]
