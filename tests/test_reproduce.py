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
