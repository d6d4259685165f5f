from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layerscope.cli import focus as command
from layerscope.errors import DataError, SourceError
from layerscope.methods.focus import search as searching

NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)),
                         nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3))

def number():
    return 3
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "own.py").write_text(NETWORK)
    x = np.random.default_rng(0).random((40, 1, 24, 24), dtype=np.float32)
    np.savez(tmp_path / "images.npz", x=x, y=np.zeros(40, dtype=np.int64))
    return f"{tmp_path / 'own.py'}:net", str(tmp_path / "images.npz")


def test_search_saves_what_run_reads(files, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searching.Effort, "__init__", _small)
    network, images = files
    command.search(network, images, max_accuracy_drop=100.0, metric="agreement", save=tmp_path / "f.pt",
                   html=tmp_path / "r.html", json=tmp_path / "r.json")  # fmt: skip
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["decision"] in said
    assert report["metric"] == "agreement"
    assert "http" not in (tmp_path / "r.html").read_text().replace("http://www.w3.org", "")
    command.run(network, tmp_path / "f.pt", images, batch=8)
    said = capsys.readouterr().out
    assert "40 images" in said
    assert "agrees with the dense network on" in said
    assert "energy" in said


def _small(self, *args, **kwargs):
    for name, value in {"cuts": 1, "scored": 2, "timed": 1, "timing_images": 3, "batch": 32}.items():
        object.__setattr__(self, name, value)


def test_profile_prints_cut_points(files, capsys):
    command.profile(files[0], size=(1, 24, 24))
    said = capsys.readouterr().out
    assert "1" in said
    assert "eager" in said


def test_a_reference_network_by_name(capsys):
    command.profile("resnet20", size=(3, 16, 16))
    assert "pays below" in capsys.readouterr().out


def test_wrong_sources_are_explained(files, tmp_path: Path):
    network, images = files
    for source, match in (
        ("net", "no network 'net'"),
        (f"{tmp_path}/none.py:net", "no file"),
        (network.replace(":net", ":nothing"), "nothing"),
        (network.replace(":net", ":number"), "number"),
        ("no_such_package:net", "no_such_package"),
    ):
        with pytest.raises(SourceError, match=match):
            command.profile(source)
    with pytest.raises(DataError, match="cannot be read"):
        command.search(network, str(tmp_path / "none.npz"))
    np.savez(tmp_path / "z.npz", z=np.zeros(3))
    with pytest.raises(DataError, match="no array 'x'"):
        command.search(network, str(tmp_path / "z.npz"))
    assert images
