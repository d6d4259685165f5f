"""Every example in the README, the docs and the rooms' docstrings runs."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDY = """
[study]
name = "tiny"
[grid]
norm = ["batch"]
[fixed]
net = "resnet20:width=8"
data = "digits"
steps = 2
"""
TEXT = {".py", ".md", ".toml", ".json", ".html", ".cpp", ".h", ".txt", ".cfg", ".yml"}
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def pages() -> list[Path]:
    written = (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "papers").glob("*/README.md")),
    )
    return [p for p in written if FENCE.search(p.read_text())]


def literal_blocks(docstring: str) -> Iterator[str]:
    """The indented blocks after ``::`` in a docstring."""
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        if not line.rstrip().endswith("::"):
            continue
        indent = len(line) - len(line.lstrip())
        block: list[str] = []
        for following in lines[number + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= indent:
                break
            block.append(following)
        yield textwrap.dedent("\n".join(block))


def examples(docstring: str) -> str:
    """The code of a docstring's ``::`` blocks and of its ``>>>`` examples, in that order."""
    prompts = doctest.DocTestParser().get_examples(docstring)
    return "\n".join([*literal_blocks(docstring), *(e.source.rstrip() for e in prompts)])


def rooms() -> list[tuple[str, str]]:
    found = []
    for init in sorted((ROOT / "src" / "layerscope").glob("*/**/__init__.py")):
        docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
        code = examples(docstring)
        if code.strip():
            found.append((str(init.parent.relative_to(ROOT / "src" / "layerscope")), code))
    return found


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an example may take for granted: a small model, a batch, an empty folder to write into."""
    import torch
    from torch import nn

    import layerscope

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    x, y = layerscope.batch("digits", 128)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    model.eval()
    (tmp_path / "train.py").write_text(
        "import layerscope\ndef make_net():\n    return layerscope.net('plain:depth=3')\n"
    )
    (tmp_path / "norms.toml").write_text(STUDY)
    halves = [(x[:64], y[:64]), (x[64:], y[64:])]
    return {
        "torch": torch, "nn": nn, "layerscope": layerscope, "model": model, "my_module": model, "net": model,
        "x": x, "y": y, "images": x, "labels": y, "calib": x[:32], "batches": halves,
        "criterion": nn.CrossEntropyLoss(), "trained_bn": nn.BatchNorm2d(8).eval(),
        "masks": [torch.ones(8, 8, dtype=torch.bool)] * len(x),
    }  # fmt: skip


@pytest.mark.parametrize("page", pages(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_code_blocks_of_a_page_run_in_order(page: Path, namespace: dict[str, Any]) -> None:
    for block in FENCE.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize(("room", "code"), rooms(), ids=[room for room, _ in rooms()])
def test_examples_of_a_room_run(room: str, code: str, namespace: dict[str, Any]) -> None:
    exec(compile(code, room, "exec"), namespace)


def test_every_room_has_an_example() -> None:
    src = ROOT / "src" / "layerscope"
    wanted = {str(p.parent.relative_to(src)) for p in (*src.glob("*/__init__.py"), *src.glob("methods/*/__init__.py"))}
    assert wanted - {room for room, _ in rooms()} <= {"cli", "methods"}


def test_nothing_points_outside_the_project() -> None:
    told = re.compile(r"\.\./shared|(?<![\w.])/(?:work|farm|root)/")
    here = Path(__file__).resolve()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    texts = [p for name in tracked if (p := ROOT / name).suffix in TEXT and p.exists() and p != here]
    assert not [str(p.relative_to(ROOT)) for p in texts if told.search(p.read_text(errors="ignore"))]
