"""The command line as a user meets it: exit codes, one clear sentence, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
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
    assert max(map(len, out.splitlines())) <= 80


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


MINE = """
import argparse
import torch
from torch import nn

lr = argparse.ArgumentParser().add_argument("--lr", default=0.1)
options = argparse.ArgumentParser().parse_args()  # a script that reads its command line while it is imported


def table():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))


def rows():
    return torch.randn(40, 6), torch.randn(40)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, left, right):
        return {"score": self.b(torch.relu(self.norm(self.a(left) + self.a(right))))}


def pairs():
    return {"left": torch.randn(40, 6), "right": torch.randn(40, 6)}, torch.arange(40) % 5


def nothing():
    pass


def leave():
    raise SystemExit("no licence")


shared = table()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    return tmp_path


@pytest.mark.parametrize(
    "args",
    [
        ("diagnose", "mine.py:table", "--data", "mine.py:rows", "--loss", "mse"),
        ("diagnose", "mine.py:table", "--data", "gaussian:shape=6", "--loss", "unlabeled"),
        ("compare", "mine.py:Pair", "--norm", "rms", "--norm", "as is", "--data", "mine.py:pairs", "--output", "score"),
        ("compare", "mine.py:shared", "--norm", "layer", "--norm", "batch", "--data", "mine.py:rows", "--loss", "mse"),
    ],
)
def test_networks_and_data_of_ones_own(args: tuple[str, ...], mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *args, "--batch-size", "8", "--json", "r.json")
    assert code == 0, err
    choices = json.loads((mine / "r.json").read_text())["choices"]
    assert all(choice["profiles"] for choice in choices), out


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("diagnose", "mine.py:table", "--data", "mine.py:row"), "has no 'row'; did you mean 'rows'"),
        (
            ("diagnose", "mine.py:table", "--data", "mine.py:nothing"),
            "returned None (does it lack a return?), and no data",
        ),
        (("diagnose", "mine.py:table", "--data", "mine.py:rows"), "loss='mse'"),
        (("diagnose", "mine.py:leave"), "SystemExit: no licence"),
        (("diagnose", "script.py:make"), "if __name__ == '__main__':"),
        (("diagnose", "mine.py:table", "--data", "mine.py:rows", "--chunks", "9"), "lower batch_size (or chunks)"),
        (("diagnose", "resnet20", *SMALL, "--classes", "0"), "classes must be a whole number of at least 1"),
        (("diagnose", "resnet20", *SMALL, "--seeds", "100000000000"), "at most 1000"),
        (("diagnose", "resnet20", *SMALL, "--html", "."), "cannot write .: Is a directory"),
        (("diagnose", "resnet20", *SMALL, "--json", "mine.py/r.json"), "cannot write mine.py/r.json"),
        (("show", "gone.json"), "cannot read gone.json: No such file"),
        (("show", "mine.py"), "does not hold a comparison"),
    ],
)
def test_what_is_wrong_with_ones_own_is_said(
    args: tuple[str, ...], part: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *args, *(() if "resnet20" in args or "show" in args else ("--batch-size", "8")))
    assert_one_sentence(code, err)
    assert part in err
    assert not out


def test_labels_that_are_all_equal_are_no_reason_to_fail(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = "gaussian:shape=3x8x8,classes=1"
    code, out, err = run(capsys, "diagnose", "resnet20:width=8", "--data", data, "--batch-size", "8")
    assert code == 0, err
    assert "gradient reached" not in out


def test_a_result_that_was_written_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, page, again = tmp_path / "a.json", tmp_path / "a.html", tmp_path / "b.html"
    args = ("compare", "resnet20:width=8", "--norm", "batch", "--norm", "none", *SMALL)
    _, first, _ = run(capsys, *args, "--json", str(numbers), "--html", str(page))
    code, second, _ = run(capsys, "show", str(numbers), "--html", str(again))
    assert code == 0
    assert first.split("page: ")[0] == second.split("page: ")[0]
    assert page.read_text() == again.read_text()


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "layerscope", "--version"], capture_output=True, text=True, check=True)
    import layerscope

    assert done.stdout.strip() == layerscope.__version__
