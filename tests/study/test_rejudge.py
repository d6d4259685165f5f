"""Verdicts of finished trials by the present rules."""

import math
from dataclasses import replace

import pytest

from layerscope.study import flatten, inline, parse, run
from layerscope.study.rejudge import rejudge, rejudged
from layerscope.study.store import Store
from layerscope.verdict.decision import Facts, decide, forward_level
from layerscope.verdict.early import is_diverged, is_learning, is_stuck
from layerscope.verdict.thresholds import DEFAULT

GOOD = Facts("good", "good", "good", "good")


@pytest.mark.parametrize(
    ("change", "label", "cause"),
    [
        ({}, "healthy", "none"),
        ({"forward": "bad", "tiny_sets": True, "diverged": True}, "fails", "forward"),
        ({"backward": "bad", "cut": True, "tiny_sets": True}, "fails", "backward"),
        ({"tiny_sets": True, "diverged": True}, "unstable", "sets"),
        ({"forward": "bad", "noise": "bad"}, "fails", "forward"),
        ({"noise": "bad", "diverged": True}, "unstable", "noise"),
        ({"diverged": True, "backward": "bad"}, "unstable", "steps diverged"),
        ({"backward": "bad"}, "unstable", "backward"),
        ({"backward": "bad", "shrinks": True}, "very slow", "backward"),
        ({"informative": "bad", "stuck": True}, "very slow", "informative"),
        ({"learns": True, "forward": "bad", "informative": "bad"}, "healthy", "steps learn"),
        ({"learns": True, "noise": "bad"}, "unstable", "noise"),
        ({"learns": True, "cut": True, "backward": "bad"}, "fails", "backward"),
        ({"stuck": True, "informative": "caution"}, "very slow", "steps stuck"),
        ({"informative": "caution"}, "slow", "informative"),
        ({"informative": "caution", "inactive": True}, "healthy", "none"),
        ({"forward": "unknown", "informative": "unknown", "backward": "unknown"}, "unknown", "unknown"),
        ({"forward": "unknown", "informative": "unknown"}, "healthy", "none"),
    ],
)
def test_the_first_rule_that_matches_decides(change, label, cause):
    assert decide(replace(GOOD, **change)) == (label, cause)


def test_levels_of_the_forward_axis():
    assert forward_level(2.0, True, 100.0, 8, DEFAULT) == "bad"
    # steep over three blocks, but nothing has grown yet
    assert forward_level(2.0, True, 4.0, 3, DEFAULT) == "caution"
    assert forward_level(2.0, True, 25.0, 3, DEFAULT) == "bad"
    assert forward_level(2.0, False, 100.0, 8, DEFAULT) == "caution"
    # a law that lasts over many steps
    assert forward_level(1.6, True, 6.0, 6, DEFAULT) == "bad"
    assert forward_level(1.1, True, 2.0, 8, DEFAULT) == "good"
    assert forward_level(0.5, True, DEFAULT.vanish_bad / 2, 8, DEFAULT) == "bad"
    assert forward_level(0.5, True, math.nan, 8, DEFAULT) == "bad"


def test_what_losses_say():
    assert is_diverged([2.3, 2.0, math.inf])
    assert is_diverged([2.3] + [2.3 * DEFAULT.steps_worse * 1.01] * 5)
    assert not is_diverged([2.3, 9.0, 2.0, 1.5, 1.2])
    assert is_stuck([2.3, 2.5, 2.5, 2.5])
    assert not is_stuck([2.3, 1.5, 1.2, 1.0])
    assert is_learning([2.3, 1.5, 1.2, 1.0])
    assert not is_learning([2.3, 2.2, 2.0, 2.0])
    assert not is_learning([2.3, 1.0, math.nan])
    # coming down from an exploded start to guessing is not learning
    assert is_learning([9.0, 4.0, 2.3, 2.3, 2.3])
    assert not is_learning([9.0, 4.0, 2.3, 2.3, 2.3], classes=10)
    assert is_learning([9.0, 4.0, 1.2, 1.2, 1.2], classes=10)


def test_a_row_is_judged_as_its_network_was(tmp_path):
    study = parse(
        {
            "grid": {"norm": ["batch", "layer", "none", "group:size=1"], "net": ["plain:width=8", "resnet:width=8"]},
            "fixed": {"depth": 8, "steps": 2, "batch_size": 8, "lr": 0.05},
        }
    )
    run(study, inline, store=tmp_path / "s.sqlite")
    with Store(tmp_path / "s.sqlite") as store:
        table = flatten(store.rows(), study)
    assert {r["state"] for r in table} == {"done"}, [r["error"] for r in table]
    for row in table:
        assert rejudge(row) == (row["verdict"], row["micro.verdict"]), row["norm"]
    strict = rejudged(table, replace(DEFAULT, noise_bad=1e-9))
    assert {r["verdict"] for r in strict if r["norm"] == "batch"} == {"unstable"}
    assert rejudged([{"state": "failed"}]) == [{"state": "failed"}]
