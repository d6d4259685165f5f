from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import tyro

from layerscope.cli import medic as command
from layerscope.errors import LayerscopeError
from methods.medic.medic_nets import tiny

NETWORK = """
from methods.medic.medic_nets import tiny

def net(classes):
    return tiny(classes=classes)
"""

OWNER = """
from methods.medic.test_defences import Owner

def net(classes):
    made = Owner()
    made.head = made.head.__class__(4, classes)
    return made
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("net") / "own_medic_net.py"
    path.write_text(NETWORK)
    return f"{path}:net"


def run(*args: object) -> None:
    tyro.extras.subcommand_cli_from_dict(command.COMMANDS, prog="layerscope medic", args=[str(a) for a in args])


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_from_an_attack_to_a_judged_clone(net, tmp_path: Path, capsys, ending):
    bad, good = tmp_path / f"bad.{ending}", tmp_path / f"good.{ending}"
    run("attack", net, "--save", bad, "--epochs", 2)
    assert "ASR" in capsys.readouterr().out
    run("clone", net, bad, "--samples", 100, "--epochs", 1, "--save", good, "--html", tmp_path / "r.html", "--json",
        tmp_path / "r.json")  # fmt: skip
    said = capsys.readouterr().out
    assert "effective clone weight" in said
    assert json.loads((tmp_path / "r.json").read_text())["samples"] == 100
    run("evaluate", net, good)
    assert "evidence about this trigger only" in capsys.readouterr().out


def test_compare_writes_what_is_asked_for(net, tmp_path: Path, capsys):
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny(classes=10).state_dict().items()}}, tmp_path / "a.pt")
    command = ("compare", net, tmp_path / "a.pt", "--samples", 64, "--defence", "clp", "--trigger", "blend")
    kept = ("--keep", tmp_path / "runs.jsonl")
    run(*command, *kept, "--csv", tmp_path / "t.csv")
    assert "Blend(alpha=0.2" in capsys.readouterr().out
    assert (tmp_path / "t.csv").read_text().count("\n") == 4
    run(*command, *kept, "--csv", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "t.csv").read_text()
    assert (tmp_path / "runs.jsonl").read_text().count("\n") == 3


def test_a_stopped_clone_says_how_to_go_on(net, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    torch.save(tiny(classes=10).state_dict(), tmp_path / "a.pt")
    command = ("clone", net, tmp_path / "a.pt", "--samples", 64, "--epochs", 3, "--keep", tmp_path / "run.pt")
    draw = torch.Tensor.backward
    left = iter(range(2))

    def backward(loss: torch.Tensor, *args: object) -> None:
        draw(loss)
        if next(left, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "backward", backward)
        with pytest.raises(KeyboardInterrupt):
            run(*command)
    assert "the same command goes on from there" in capsys.readouterr().out
    run(*command)
    assert "3 steps" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["attack", "clone", "evaluate", "compare"])
def test_a_device_that_is_not_there_is_one_sentence(net, tmp_path: Path, command: str):
    torch.save(tiny(classes=10).state_dict(), tmp_path / "a.pt")
    weights = ("--save", tmp_path / "b.pt") if command == "attack" else (tmp_path / "a.pt",)
    with pytest.raises(LayerscopeError, match="device 'cuda:99' cannot be used here"):
        run(command, net, *weights, "--device", "cuda:99")


def test_wrong_checkpoints_are_one_sentence(net, tmp_path: Path):
    whole, small, junk = tmp_path / "whole.pt", tmp_path / "small.pt", tmp_path / "junk.safetensors"
    torch.save(tiny(classes=10), whole)
    torch.save(tiny(classes=3).state_dict(), small)
    junk.write_bytes(b"junk")
    for i, content in enumerate((b"junk\n", b"", b"\x80\x02.", b"]]", bytes(range(256)))):
        (tmp_path / f"junk{i}.pt").write_bytes(content)
        with pytest.raises(LayerscopeError, match="cannot be read as plain weights"):
            run("evaluate", net, tmp_path / f"junk{i}.pt")
    for path, said in (
        (whole, "runs their code"),
        (small, "does not fit"),
        (junk, "safetensors"),
        (tmp_path / "no.pt", "no checkpoint"),
    ):
        with pytest.raises(LayerscopeError, match=said):
            run("evaluate", net, path)
    with pytest.raises(LayerscopeError, match="--samples 0"):
        run("clone", net, small, "--samples", 0)


def test_prefixes_of_wrappers_do_not_matter(net, tmp_path: Path, capsys):
    wrapped = {f"_orig_mod.module.{k}": v for k, v in tiny(classes=10).state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": wrapped}, tmp_path / "a.pt")
    run("evaluate", net, tmp_path / "a.pt")
    assert "ACC" in capsys.readouterr().out


def test_a_network_that_cannot_be_drawn_anew_comes_from_its_factory(tmp_path: Path):
    path = tmp_path / "own_medic_owner.py"
    path.write_text(OWNER)
    bad, good = tmp_path / "bad.pt", tmp_path / "deep" / "good.safetensors"
    run("attack", f"{path}:net", "--save", bad, "--epochs", 1)
    run("clone", f"{path}:net", bad, "--samples", 64, "--epochs", 1, "--save", good)
    assert good.is_file()
