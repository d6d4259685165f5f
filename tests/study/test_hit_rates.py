"""Hit rates by hand, and the sentence that reports carry."""

import pytest

from layerscope.study.hit_rates import hit_rates
from layerscope.study.scoring import entries
from layerscope.verdict import evidence


def row(setup, norm, accuracy, init, micro=None):
    return {
        "id": f"{setup}{norm}", "state": "done", "norm": norm, "seed": 0, "net": setup, "verdict": init,
        "micro.verdict": micro or init, "outcome.mean_accuracy": accuracy, "outcome.fails": accuracy < 0.15,
    }  # fmt: skip


ROWS = entries(
    [
        row("a", "batch", 0.9, "healthy"),
        row("a", "layer", 0.5, "slow"),
        row("a", "frn", 0.6, "slow"),
        row("a", "none", 0.1, "fails"),
        row("a", "sws", 0.7, "fails", "healthy"),
        row("b", "batch", 0.1, "healthy", "unstable"),
        row("b", "layer", 0.4, "very slow"),
        row("b", "none", 0.2, "unknown"),
        row("b", "frn", 0.1, "unstable"),
    ],
    ["net"],
)


def test_counts_by_hand():
    found = hit_rates(ROWS, ROWS)
    init = found["init"]
    assert (init["healthy"].count, init["healthy"].right) == (2, 0.5)
    assert init["healthy"].usual == pytest.approx(6 / 9, abs=1e-4)
    # of the two called slow in a, the median of 0.9 0.5 0.6 0.1 0.7 is 0.6: one is below it
    assert init["slow"].right == 0.5
    # 0.4 is above the median of set-up b
    assert init["very slow"].right == 0.0
    assert (init["fails"].count, init["fails"].right) == (2, 0.5)
    assert init["unstable"].right == 1.0
    assert "unknown" not in init
    assert found["micro"]["healthy"].right == 1.0
    assert found["micro"]["unstable"].right == 1.0
    for rate in init.values():
        assert rate.low <= rate.right <= rate.high


def test_the_sentences(monkeypatch):
    data = {
        "summary": {},
        "scores": {},
        "rates": {"init": {"healthy": {"count": 200, "right": 0.9, "low": 0.85, "high": 0.94, "usual": 0.6}}},
    }
    monkeypatch.setattr(evidence, "load", lambda: evidence.parse(data))
    said = evidence.track_record("healthy", "init")
    assert said == (
        "Hit rate: of 200 held-out trainings called healthy from initialization alone, 90% [85%, 94%] trained; "
        "60% of all did."
    )
    assert evidence.track_record("healthy", "micro") == evidence.track_record("fails", "init") == ""
    assert evidence.track_records(["healthy", "fails"], "init") == (
        "Hit rate on held-out trainings: healthy 90% trained (of all 60%)."
    )
    assert evidence.track_records(["fails"], "init") == ""
