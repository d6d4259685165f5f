"""Named lists of trials: written down before they run, then run and scored by themselves."""

from pathlib import Path

import pytest

from layerscope.errors import StudyError
from layerscope.study import Store, inline, lists, load, run
from layerscope.study.scoring import entries
from layerscope.study.summary_card import members, parts

TEXT = """
[study]
trial = "study.dummies:anything"
[grid]
norm = ["batch", "frn", "none"]
net = ["a", "b"]
[split]
norm = "frn"
[lists]
fresh = "fresh.txt"
"""


def a_study(folder: Path, ids=None):
    whole = TEXT.partition("[lists]")[0]
    (folder / "s.toml").write_text(whole)
    every = [t.id for t in load(folder / "s.toml").trials]
    lists.write(folder / "fresh.txt", "two lines\n\nof reasons", every[:3:-1] if ids is None else ids)
    (folder / "s.toml").write_text(TEXT)
    return every


def test_a_list_runs_alone_in_its_own_order(tmp_path):
    every = a_study(tmp_path)
    study = load(tmp_path / "s.toml")
    ran = []
    now = run(study, inline, only="fresh", watch=lambda trial, outcome, standing: ran.append(trial.id))
    assert ran == every[:3:-1]
    assert (now.done, now.total) == (2, 6)
    # the rest is still to do, and the list is not run again
    run(study, inline, watch=lambda trial, outcome, standing: ran.append(trial.id))
    assert sorted(ran) == sorted(every)
    with Store(tmp_path / "s.sqlite") as store:
        assert len(store.states()) == 6


def test_a_list_is_a_part_to_score_and_so_is_what_the_split_holds_out_of_it(tmp_path):
    every = a_study(tmp_path)
    study = load(tmp_path / "s.toml")
    assert parts(study) == (
        "all", "development", "held-out", "held-out:norm", "fresh", "fresh:norm",
    )  # fmt: skip
    rows = [
        {
            "id": t.id, "state": "done", "norm": t.arguments["norm"], "net": t.arguments["net"], "held_out": bool(by),
            "held_out_by": " ".join(by), "outcome.mean_accuracy": 0.5, "outcome.fails": False,
        }
        for t in study.trials
        for by in [study.held_out_by(t)]
    ]  # fmt: skip
    everything = entries(rows, ["net"])
    found = {part: [every.index(e.row["id"]) for e in members(study, everything, part)] for part in parts(study)}
    assert found == {
        "all": [0, 1, 2, 3, 4, 5],
        "development": [0, 1, 4, 5],
        "held-out": [2, 3],
        "held-out:norm": [2, 3],
        "fresh": [4, 5],
        "fresh:norm": [],
    }


@pytest.mark.parametrize(
    ("text", "ids", "message"),
    [
        ('fresh = "absent.txt"', None, "absent.txt cannot be read: No such file"),
        ("fresh = 3", None, "must be the name of a text file, got 3"),
        ('held-out = "fresh.txt"', None, "choose another name"),
        ('"a:b" = "fresh.txt"', None, "choose another name"),
        ('fresh = "fresh.txt"', [], "holds no trial ids"),
        ('fresh = "fresh.txt"', ["x", "x"], "'x' stands in .*fresh.txt twice"),
        ('fresh = "fresh.txt"', ["x"], "1 of 1 ids are no trials of this study, such as 'x'"),
    ],
)
def test_a_bad_list_is_named(tmp_path, text, ids, message):
    a_study(tmp_path, ids)
    (tmp_path / "s.toml").write_text(TEXT.replace('fresh = "fresh.txt"', text))
    with pytest.raises(StudyError, match=message):
        load(tmp_path / "s.toml")


def test_an_unknown_list_answers_with_the_nearest(tmp_path):
    a_study(tmp_path)
    with pytest.raises(StudyError, match=r"no list 'frech'.*fresh"):
        load(tmp_path / "s.toml").listed("frech")
    (tmp_path / "plain.toml").write_text(TEXT.partition("[lists]")[0])
    with pytest.raises(StudyError, match=r"the study file has no \[lists\]"):
        load(tmp_path / "plain.toml").listed("fresh")
