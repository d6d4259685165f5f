from __future__ import annotations

from pathlib import Path

import pytest

from layerscope.cli import main
from layerscope.cli.reproduce import studies

SCRIPT = """
import sys
print("ran", sys.argv[1:])
sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "papers" / "some-paper"
    folder.mkdir(parents=True)
    (folder / "reproduce.py").write_text(SCRIPT)
    (tmp_path / "papers" / "without").mkdir()
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)


@pytest.mark.usefixtures("checkout")
def test_options_go_to_the_study_as_they_are(capfd):
    main(["reproduce", "some-paper", "--seeds"])
    assert "ran ['--seeds']" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "some-paper", "--code", "7"])
    assert ended.value.code == 7


@pytest.mark.usefixtures("checkout")
def test_what_there_is_and_what_there_is_not(capsys):
    main(["reproduce"])
    assert "some-paper" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "some-papr"])
    assert ended.value.code == 2
    assert "did you mean 'some-paper'" in capsys.readouterr().err


def test_the_studies_of_this_checkout(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    assert "medic" in studies()


@pytest.mark.slow
def test_beyond_batchnorm_runs_stops_and_goes_on(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(Path(__file__).parent)
    card = Path(__file__).parents[1] / "papers" / "beyond-batchnorm" / "README.md"
    before = card.read_text()
    command = [
        "reproduce",
        "beyond-batchnorm",
        "--run",
        "--scale",
        "small",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "o"),
    ]
    main([*command, "--limit", "2"])
    assert "curves-small: 44 of 44 trials to run" in capfd.readouterr().out
    assert {f.name for f in (tmp_path / "o").glob("*.svg")} >= {"curves-small.svg", "depth.svg"}
    main([*command, "--limit", "1"])
    out = capfd.readouterr().out
    assert "curves-small: 42 of 44 trials to run" in out
    assert "| the paper's claim | here | held | scale |" in out
    assert card.read_text() == before
    with pytest.raises(SystemExit):
        main([*command, "--limit", "0"])
    assert "--limit must be at least 1" in capfd.readouterr().err
