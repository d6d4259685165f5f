from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from layerscope import report
from layerscope.report.micro import micro_sentence
from layerscope.verdict.types import Comparison, MicroTrain
from report.reading import check
from report.worlds import LAWS, comparison

FALLS = MicroTrain(0.1, 6, 32, (2.0, 1.8, 1.6, 1.0, 1.0, 1.0), diverged=False, diverged_at=None)
RISES = MicroTrain(0.1, 6, 32, (2.0, 2.2, 2.4, 3.0, 3.0, 3.0), diverged=False, diverged_at=None)
BURSTS = MicroTrain(0.1, 6, 32, (2.0, 80.0, math.inf), diverged=True, diverged_at=2)


def with_steps(*micro: tuple[MicroTrain, ...]) -> Comparison:
    result = comparison(LAWS[: len(micro)], seeds=1, layers=5)
    pairs = zip(result.choices, micro, strict=True)
    return replace(result, choices=tuple(replace(c, verdict=replace(c.verdict, micro=m)) for c, m in pairs))


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        ((), ""),
        ((FALLS,), "6 steps at learning rate 0.1, batch size 32: the loss, 2 at first, fell by 50 %."),
        ((RISES, RISES), "6 steps at learning rate 0.1, batch size 32: the loss, 2 at first, rose by 50 %."),
        ((BURSTS,), "6 steps at learning rate 0.1, batch size 32: the loss diverged, first at step 2."),
        (
            (FALLS, BURSTS),
            "6 steps at learning rate 0.1, batch size 32: the loss diverged at 1 of 2 seeds, first at step 2.",
        ),
    ],
)
def test_one_sentence_for_all_seeds(micro: tuple[MicroTrain, ...], text: str) -> None:
    assert micro_sentence(micro) == text


def test_steps_are_drawn_and_told(tmp_path: Path) -> None:
    result = with_steps((BURSTS, FALLS), (FALLS, FALLS), ())
    page = check(report.write_html(result, tmp_path / "m.html").read_text(encoding="utf-8"))
    assert "Trial: a few real steps" in page.text
    assert "the loss diverged at 1 of 2 seeds" in page.text
    assert "nothing was trained" not in page.text
    text = report.to_text(result)
    assert "the loss diverged at 1 of 2 seeds" in " ".join(text.split())
    assert "Nothing was trained" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_without_steps_nothing_is_said(tmp_path: Path) -> None:
    page = check(report.write_html(with_steps((), ()), tmp_path / "m.html").read_text(encoding="utf-8"))
    assert "Trial" not in page.text
    assert "nothing was trained" in page.text
