from __future__ import annotations

import io
import re

import pytest

from layerscope import report
from report.worlds import LAWS, comparison


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def bare(text: str) -> str:
    return "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines())


def test_plain_text_without_a_terminal() -> None:
    out = io.StringIO()
    report.print_result(comparison(), out)
    assert out.getvalue() == report.to_text(comparison()) + "\n"


def test_colour_on_a_terminal_changes_no_character() -> None:
    out = Terminal()
    report.print_result(comparison(), out)
    assert "\x1b[" in out.getvalue()
    assert bare(out.getvalue()) == report.to_text(comparison())


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    report.print_result(comparison(LAWS[:2], seeds=1, layers=4), out)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", out.getvalue())


@pytest.mark.parametrize("columns", [60, 40])
def test_a_narrow_terminal_gets_a_narrow_report(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    report.print_result(comparison(), out)
    assert max(map(len, bare(out.getvalue()).splitlines())) <= columns
    assert max(map(len, report.to_text(comparison()).splitlines())) > 60, "and nothing else changes"


def test_names_are_not_markup() -> None:
    from dataclasses import replace

    out = Terminal()
    report.print_result(replace(comparison(LAWS[:1], seeds=1, layers=3), source="[red]net[/red]"), out)
    assert "[red]net[/red]" in bare(out.getvalue())


def test_progress_is_silent_without_a_terminal() -> None:
    out = io.StringIO()
    with report.progress(3, "probing", out) as step:
        for name in "abc":
            step(name)
    assert out.getvalue() == ""


def test_progress_draws_on_a_terminal_and_tidies_up() -> None:
    out = Terminal()
    with report.progress(2, "probing [x]", out) as step:
        step("batch, seed 0")
        step("layer, seed 0")
    text = out.getvalue()
    assert "probing [x]" in text
    assert "1/2" in bare(text)
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h")) or "\x1b[2K" in text


def test_progress_in_a_notebook_is_one_line_that_goes_away() -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    with report.progress(2, "probing", stream) as step:
        step("batch, seed 0")
        step("layer, seed 0")
    text = stream.getvalue()
    assert "probing 0/2  batch, seed 0" in text
    assert "\x1b" not in text
    assert "\n" not in text
    assert not text.split("\r")[-2].strip(), "the line is written over"


def test_progress_lets_errors_through() -> None:
    def work() -> None:
        with report.progress(1, "x", Terminal()) as step:
            step("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
