"""``layerscope study`` and ``layerscope score`` as functions: what they print, and what they say to wrong input."""

import csv
import subprocess
import sys

import pytest

from layerscope.cli import score, study
from layerscope.errors import StudyError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('[study]\nname = "demo"\ntrial = "study.dummies:fails_on_odd"\n[grid]\nx = [0, 1, 2, 3]\n')
    return path


def test_from_run_to_export(file, capsys, tmp_path):
    study.status(file)
    assert capsys.readouterr().out == "demo: 4 trials, none run yet\n"
    study.run(file, engine="inline", limit=3)
    out = capsys.readouterr().out
    assert "demo: 4 trials, 2 done, 1 failed, 1 to do" in out
    assert f"results: {tmp_path / 's.sqlite'}" in out
    study.resume(file, engine="local", workers=1)
    assert "2 done, 2 failed, 0 to do" in capsys.readouterr().out
    study.status(file)
    assert "2 done, 2 failed, 0 to do" in capsys.readouterr().out
    study.show(file)
    table = capsys.readouterr().out
    assert "ValueError: 3 is odd" in table
    study.show(file, failed=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    study.show(file, lines[1].split()[0][:6])
    assert "Traceback" in capsys.readouterr().out
    study.export(file, tmp_path / "out.csv")
    assert "4 rows" in capsys.readouterr().out
    assert len(list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))) == 4


def test_resume_needs_something_to_resume(file):
    with pytest.raises(StudyError, match="no results at"):
        study.resume(file)
    with pytest.raises(StudyError, match="no results at"):
        study.show(file)


def test_score_of_a_study_that_trains_nothing(file, tmp_path):
    study.run(file, engine="inline")
    with pytest.raises(StudyError, match="no column 'norm'"):
        score.score(file)


def test_the_study_room_and_its_commands_import_no_torch():
    code = (
        "import sys; import layerscope.study as s; from layerscope.cli import study, score;"
        "s.load, s.run, s.local, s.Store, s.flatten, s.scorecard; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
