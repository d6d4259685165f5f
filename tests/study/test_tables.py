import csv
import io
import json

import pytest

from layerscope.errors import StudyError
from layerscope.study import Progress, Standing, Store, export, flatten, inline, load, parse, run
from layerscope.study import progress as progress_module
from layerscope.study.store import Row
from layerscope.study.trial import Outcome, Trial
from layerscope.study.view import one, table


def row(**changes):
    base = {
        "id": "ab12",
        "function": "m:f",
        "params": {"lr": 0.1, "shape": [1, 8]},
        "state": "done",
        "result": {"lr": 3, "init": {"cosine": 0.5, "deep": {"x": 1}}, "losses": [1, 2], "state": "ok"},
        "error": "",
        "trace": "",
        "seconds": 1.23456,
        "ended": 0.0,
    }
    return Row(**{**base, **changes})


def test_rows_become_flat():
    (flat,) = flatten([row()])
    assert flat == {
        "id": "ab12",
        "state": "done",
        "lr": 0.1,
        "shape": "[1, 8]",
        "result.lr": 3,
        "init.cosine": 0.5,
        "init.deep.x": 1,
        "losses": "[1, 2]",
        "result.state": "ok",
        "error": "",
        "seconds": 1.2346,
    }


def finished(tmp_path, function="square", split=None):
    document = {"study": {"name": "t", "trial": f"study.dummies:{function}"}, "grid": {"x": list(range(5))}}
    study = parse({**document, **({"split": split} if split else {})})
    run(study, inline, store=tmp_path / "a.sqlite")
    with Store(tmp_path / "a.sqlite") as store:
        return study, list(store.rows())


def test_csv_and_json_hold_every_row(tmp_path):
    study, rows = finished(tmp_path, split={"x": [4]})
    flat = flatten(rows, study)
    export(flat, tmp_path / "a.csv")
    export(flat, tmp_path / "a.json")
    read = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [r["x"] for r in read] == ["0", "1", "2", "3", "4"]
    assert list(read[0])[:3] == ["id", "state", "held_out"]
    assert [r["held_out"] for r in read] == ["False"] * 4 + ["True"]
    assert json.loads((tmp_path / "a.json").read_text()) == flat


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    study, rows = finished(tmp_path)
    export(flatten(rows, study), tmp_path / "a.parquet")
    assert arrow.read_table(tmp_path / "a.parquet").num_rows == 5


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(Exception, match=r"pip install 'layerscope\[parquet\]'"):
        export([{"id": "a"}], tmp_path / "a.parquet")


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(StudyError, match=r"written as .csv, .json or .parquet"):
        export([], tmp_path / "a.xlsx")
    with pytest.raises(StudyError, match="cannot be written: No such file"):
        export([], tmp_path / "no" / "a.csv")


def test_the_table_shows_what_varies_and_what_failed(tmp_path):
    study, rows = finished(tmp_path, "fails_on_odd")
    text = table(study, rows)
    assert text.splitlines()[0].split() == ["id", "x", "y", "error"]
    assert "ValueError: 3 is odd" in text
    assert len(text.splitlines()) == 6
    assert table(study, []) == "no results to show"


def test_one_trial_in_full(tmp_path):
    _, rows = finished(tmp_path, "fails_on_odd")
    by_x = {r.params["x"]: r for r in rows}
    assert "x = 2" in one(by_x[2])
    assert "y = 2.0" in one(by_x[2])
    assert 'raise ValueError(f"{x} is odd")' in one(by_x[3])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_says_how_far_and_how_long(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    trial = Trial.of("m:f", {})
    good, bad = Outcome(trial.id, "done", {}, "", "", 1.0), Outcome(trial.id, "failed", {}, "E: no", "", 1.0)
    with Progress(5, ended=2, every=30, stream=stream) as progress:
        now[0] += 40
        progress(trial, good, Standing(5, 3, 0, 1.0))
        now[0] += 1
        progress(trial, bad, Standing(5, 3, 1, 2.0))
        now[0] += 1
        progress(trial, good, Standing(5, 4, 1, 9.0))
    assert stream.getvalue().splitlines() == [
        "3/5 trials, time left 80 s",
        f"failed {trial.id}: E: no",
        "5/5 trials, 1 failed, finished",
    ]


def test_progress_on_a_terminal_is_a_bar():
    stream = Terminal()
    trial = Trial.of("m:f", {})
    with Progress(2, stream=stream) as progress:
        progress(trial, Outcome(trial.id, "failed", {}, "E: no", "", 1.0), Standing(2, 0, 1, 1.0))
        progress(trial, Outcome(trial.id, "done", {}, "", "", 1.0), Standing(2, 1, 1, 1.0))
    assert "2/2" in stream.getvalue()
    assert "E: no" in stream.getvalue()


def test_the_example_of_the_room(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('[study]\ntrial = "study.dummies:square"\n[grid]\nx = [1, 2]\n')
    assert run(load(file), inline).done == 2
    assert (tmp_path / "s.sqlite").exists()
