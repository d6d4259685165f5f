"""Rows as text: what is committed, and what several machines bring together."""

import gzip
import json

import pytest

from layerscope.errors import StudyError
from layerscope.study import Store, rowfile
from layerscope.study.trial import Outcome, Trial, execute


def trial(x):
    return Trial.of("study.dummies:square", {"x": x})


def store(path, numbers, failed=()):
    with Store(path, write=True) as kept:
        for x in numbers:
            kept.add(trial(x), execute(trial(x)))
        for x in failed:
            kept.add(trial(x), Outcome(trial(x).id, "failed", {}, "no", "Traceback", 1.0))
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_rows_come_back_and_the_same_rows_give_the_same_bytes(tmp_path, name):
    path = store(tmp_path / "a.sqlite", range(20), failed=[50])
    rows = list(rowfile.rows_of(path))
    assert rowfile.write(rows, tmp_path / name) == 21
    first = (tmp_path / name).read_bytes()
    rowfile.write(reversed(rows), tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    back = {r.id: r for r in rowfile.rows_of(tmp_path / name)}
    assert {r.id: (r.params, r.state, r.error) for r in rows} == {
        i: (r.params, r.state, r.error) for i, r in back.items()
    }
    for row in rows:
        if row.state == "done":
            assert back[row.id].result["y"] == pytest.approx(row.result["y"], rel=1e-6)
            assert back[row.id].result["nan"] == "nan"


def test_four_machines_are_brought_together_without_loss(tmp_path):
    parts = [store(tmp_path / f"{k}.sqlite", range(k, 40, 4)) for k in range(4)]
    with Store(tmp_path / "all.sqlite", write=True) as kept:
        for part in parts:
            assert rowfile.merge(kept, rowfile.rows_of(part)) == (10, 0)
        assert rowfile.merge(kept, rowfile.rows_of(parts[0])) == (0, 10)
        assert len(kept.states()) == 40
        for x in range(40):
            assert kept.get(trial(x).id).result == execute(trial(x)).result


def test_a_finished_trial_replaces_a_failed_one_and_not_the_other_way(tmp_path):
    good, bad = store(tmp_path / "g.sqlite", [1]), store(tmp_path / "b.sqlite", [], failed=[1])
    with Store(tmp_path / "all.sqlite", write=True) as kept:
        assert rowfile.merge(kept, rowfile.rows_of(bad)) == (1, 0)
        assert rowfile.merge(kept, rowfile.rows_of(good)) == (1, 0)
        assert rowfile.merge(kept, rowfile.rows_of(bad)) == (0, 1)
        assert kept.states() == {trial(1).id: "done"}


def test_files_that_are_cut_off_or_something_else(tmp_path):
    rows = list(rowfile.rows_of(store(tmp_path / "a.sqlite", range(3))))
    rowfile.write(rows, tmp_path / "r.jsonl")
    text = (tmp_path / "r.jsonl").read_text()
    (tmp_path / "cut.jsonl").write_text(text[:-40])
    with pytest.raises(StudyError, match=r"cut.jsonl, line 3: not a result row .* remove the line"):
        list(rowfile.read(tmp_path / "cut.jsonl"))
    (tmp_path / "other.jsonl").write_text(json.dumps([1, 2]) + "\n")
    with pytest.raises(StudyError, match="line 1: not a result row"):
        list(rowfile.read(tmp_path / "other.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(StudyError, match="cannot be read"):
        list(rowfile.read(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(StudyError, match="no results at"):
        list(rowfile.read(tmp_path / "none.jsonl"))
    with pytest.raises(StudyError, match="cannot be written"):
        rowfile.write(rows, tmp_path / "a.sqlite" / "r.jsonl")
