"""The command line as a user meets it: exit codes, one clear sentence, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerscope.cli import TABLE, main


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(list(args))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def assert_one_sentence(code: int, err: str) -> None:
    assert code == 2, err
    assert err.startswith("layerscope: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 6, err


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in TABLE)
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", sorted(TABLE))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "usage" in out.lower()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import layerscope

    code, out, _ = run(capsys, "--version")
    assert (code, out.strip()) == (0, layerscope.__version__)


def test_unknown_command_answers_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "comprae")
    assert_one_sentence(code, err)
    assert "did you mean 'compare'" in err


SMALL = ("--data", "digits:size=16", "--batch-size", "8")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("compare", "resnet55", "--norm", "batch", *SMALL), "resnet56"),
        (("compare", "resnet20", "--norm", "bacth", *SMALL), "batch"),
        (("compare", "resnet20", "--norm", "group:32", *SMALL), "group:size=32"),
        (("compare", "resnet20", "--norm", "group:32", *SMALL), "group:groups=32"),
        (("compare", "resnet20", "--norm", "group:sise=8", *SMALL), "size"),
        (("compare", "resnet20:width=10", "--norm", "group:size=7", *SMALL), "7"),
        (("compare", "resnet20", "--norm", "batch", "--data", "digit"), "digits"),
        (("compare", "resnet20", "--norm", "batch", *SMALL, "--seeds", "0"), "seeds"),
        (("compare", "resnet20", "--norm", "batch", *SMALL, "--device", "cuda:99"), "cuda"),
        (("compare", "nowhere.py:factory", "--norm", "batch", *SMALL), "nowhere.py"),
        (("compare", "timm:resnet19", "--norm", "batch", *SMALL), "resnet18"),
        (("diagnose", "resnet20", "--data", "digits:size=16", "--batch-size", "100000"), "100"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    args: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *args)
    assert_one_sentence(code, err)
    assert part in err


def test_compare_prints_a_table_and_writes_page_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, numbers = tmp_path / "a.html", tmp_path / "a.json"
    code, out, _ = run(capsys, "compare", "resnet20:width=8", "--norm", "none", "--norm", "batch", *SMALL,
                       "--html", str(page), "--json", str(numbers))  # fmt: skip
    assert code == 0
    assert "batch" in out
    table = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= 80
    assert page.read_text().lower().startswith("<!doctype html>")
    read = json.loads(numbers.read_text())
    assert [c["norm"] for c in read["choices"]] == ["none", "batch"]


def test_diagnose_a_users_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),"
        " nn.Linear(32, 10))\n"
    )
    code, out, err = run(capsys, "diagnose", f"{file}:make", "--data", "digits", "--batch-size", "16")
    assert code == 0, err
    assert "as is" in out


def test_a_model_that_raises_inside_forward_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from torch import nn\n"
        "class Bad(nn.Module):\n"
        "    def forward(self, x):\n        raise RuntimeError('no such thing')\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), Bad())\n"
    )
    code, _, err = run(capsys, "diagnose", f"{file}:make", "--data", "digits", "--batch-size", "16")
    assert_one_sentence(code, err)
    assert "no such thing" in err
    assert "'1'" in err or " 1" in err  # the path of the module inside the Sequential
