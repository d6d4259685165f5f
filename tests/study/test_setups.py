"""Sub-samples of a grid by whole set-ups."""

import itertools
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from layerscope.errors import StudyError
from layerscope.study import load, parse

COMMITTED = Path(__file__).resolve().parents[2] / "papers" / "beyond-batchnorm" / "study.toml"

TEXT = """
[study]
trial = "study.dummies:anything"

[grid]
norm = ["batch", "none", "layer"]
net = ["a", "b"]
data = ["d", "e"]
depth = [8, 14, 26]
batch_size = [4, 16, 64]
lr = [0.01, 0.05, 0.25]
seed = 3

[[exclude]]
net = "b"
norm = "layer"

[design]
within = ["norm"]
strata = ["net", "data"]
square = ["depth", "batch_size", "lr"]
repeats = 1
"""


def study(text=TEXT + "setups = 9\n"):
    return parse(tomllib.loads(text))


def setups(trials):
    """Per stratum, the set-ups in the order of their first trial."""
    found = {}
    for t in trials:
        a = t.arguments
        found.setdefault((a["net"], a["data"]), {}).setdefault((a["depth"], a["batch_size"], a["lr"]), []).append(t)
    return found


def test_a_set_up_has_every_norm_it_can_take():
    for (net, _), chosen in setups(study().trials).items():
        for trials in chosen.values():
            norms = Counter(t.arguments["norm"] for t in trials if t.arguments["seed"] == 0)
            assert norms == Counter(["batch", "none"] if net == "b" else ["batch", "none", "layer"])


def test_nine_set_ups_are_a_latin_square_and_three_hold_every_value_once():
    for chosen in setups(study().trials).values():
        assert len(chosen) == 9
        for i, j in itertools.combinations(range(3), 2):
            assert len({(s[i], s[j]) for s in chosen}) == 9
        first = list(chosen)[:3]
        assert all(len({s[i] for s in first}) == 3 for i in range(3))
    few = study(TEXT + "setups = 3\n")
    many = {t.id for t in study().trials}
    assert {t.id for t in few.trials} < many


def test_the_strata_do_not_all_get_the_same_set_ups_and_the_seed_shifts_them():
    chosen = setups(study().trials)
    assert len({frozenset(c) for c in chosen.values()}) > 1
    other = setups(study(TEXT + "setups = 9\nseed = 5\n").trials)
    assert any(set(other[k]) != set(chosen[k]) for k in chosen)


def test_only_the_repeated_set_up_runs_at_every_seed():
    for chosen in setups(study().trials).values():
        seeds = [{t.arguments["seed"] for t in trials} for trials in chosen.values()]
        assert seeds == [{0, 1, 2}] + [{0}] * 8


def test_trials_run_in_balanced_rounds():
    trials = study().trials
    per_round = Counter((t.arguments["net"], t.arguments["data"]) for t in trials[:10])
    assert per_round == {("a", "d"): 3, ("a", "e"): 3, ("b", "d"): 2, ("b", "e"): 2}
    later = [t.arguments["seed"] for t in trials]
    assert later.index(1) > len(trials) // 5


def test_numbers_of_set_ups_by_a_value_of_the_stratum():
    s = study(TEXT + "\n[design.setups]\nd = 4\ne = 2\n")
    assert {k: len(v) for k, v in setups(s.trials).items()} == {
        ("a", "d"): 4, ("b", "d"): 4, ("a", "e"): 2, ("b", "e"): 2,
    }  # fmt: skip
    with pytest.raises(StudyError, match="gives no number for the stratum a, e"):
        _ = study(TEXT + "\n[design.setups]\nd = 4\n").trials


def test_without_a_square_set_ups_are_drawn_by_their_hash():
    text = TEXT.replace('square = ["depth", "batch_size", "lr"]\n', "")
    chosen = setups(study(text + "setups = 5\n").trials)
    assert all(len(c) == 5 for c in chosen.values())
    assert chosen == setups(study(text + "setups = 5\n").trials)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("setups = 9", ""), "design.within is about whole set-ups: say how many"),
        (("setups = 9", "setups = 9\ntrials = 4"), "keep one"),
        (("setups = 9", "setups = 0"), "setups must be a whole number of at least 1"),
        (('within = ["norm"]\n', ""), "design.within is missing"),
        (('within = ["norm"]', 'within = ["nrom"]'), "did you mean 'norm'"),
        (('"batch_size", "lr"]', '"batch_size", "net"]'), "two or more axes with equally many values"),
        (('strata = ["net", "data"]', 'strata = ["net", "norm"]'), "stands in more than one of"),
        (("repeats = 1", "repeats = -1"), "repeats must be a whole number"),
        (("setups = 9", "[design.setups]\nx = 3"), "unknown value of a stratum 'x'"),
    ],
)
def test_bad_designs(change, words):
    with pytest.raises(StudyError, match=words):
        study((TEXT + "setups = 9\n").replace(*change, 1))


def test_the_committed_study_covers_what_it_says():
    s = load(COMMITTED)
    values = {name: set(v) for name, v in s.distinct().items()}
    assert len(s.trials) >= 1000
    assert len(values["norm"]) >= 14
    assert len(values["net"]) >= 6
    assert {len(values[k]) for k in ("depth", "batch_size", "lr", "seed")} == {3}
    assert 4 in values["batch_size"]
    held = [t for t in s.trials if s.is_held_out(t)]
    assert 0.2 < 1 - len(held) / len(s.trials) < 0.5
    # no development trial shares a norm, a network or the data set with what is held out
    for name, kept in s.held_out:
        assert not {t.arguments[name] for t in s.trials if not s.is_held_out(t)} & set(kept)
