"""The commands over loopback, in processes of their own, and the cost command."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from layerscope.cli import encrypted as commands
from layerscope.errors import LayerscopeError, MissingExtraError
from layerscope.methods import encrypted as she
from methods.encrypted.example_nets import made


def test_serve_keygen_query_over_loopback(tmp_path, capsys):
    net, x = made("residual")
    qnet = she.quantize(net, x, bits=3, act_bits=3)
    compiled = she.compile(qnet, "plain", selftest=1)
    compiled.client().save(tmp_path / "client")
    compiled.server().save(tmp_path / "server")
    np.save(tmp_path / "images.npy", x[:3].numpy())
    commands.keygen(tmp_path / "client", tmp_path / "key")
    code = f"from layerscope.cli import encrypted as c; c.serve({str(tmp_path / 'server')!r}, port=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "passed: 3 inputs" in line
        port = int(line.strip().rsplit(":", 1)[1])
        commands.query(tmp_path / "client", tmp_path / "key", tmp_path / "images.npy", port=port)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    lines = [row for row in capsys.readouterr().out.splitlines() if ": class" in row]
    assert [int(row.split()[2]) for row in lines] == qnet(x[:3]).argmax(1).tolist()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc to read another process's memory")
def test_the_serving_process_never_holds_a_secret(tmp_path):
    """Its memory and open files are searched for the key's bytes; the public key's are found, so the search works."""
    net, x = made("residual")
    compiled = she.compile(she.quantize(net, x, bits=3, act_bits=3), "plain")
    compiled.server().save(tmp_path / "server")
    client = compiled.client()
    client.keygen(tmp_path / "key")
    code = f"from layerscope.cli import encrypted as c; c.serve({str(tmp_path / 'server')!r}, port=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rsplit(":", 1)[1])
        she.post("127.0.0.1", port, "/keys", client.evaluation_keys())
        request = client.encrypt(x[:1], canary=True)
        client.decrypt(she.post("127.0.0.1", port, "/run", request), request=request)
        secret, public = client._session.secret(), client._session.evaluation()
        try:
            found = searched(process.pid, (secret, public))
        except PermissionError:
            pytest.skip("this system does not let a process read its child's memory")
        files = [p.readlink().name for p in Path(f"/proc/{process.pid}/fd").iterdir()]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    assert found == (False, True)
    assert "key" not in files


def searched(pid: int, needles: tuple[bytes, ...]) -> tuple[bool, ...]:
    """Whether each byte string stands anywhere in a process's writable memory."""
    found = [False] * len(needles)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, mode, *_ = line.split()
            if not mode.startswith("rw"):
                continue
            start, stop = (int(n, 16) for n in place.split("-"))
            try:
                memory.seek(start)
                data = memory.read(stop - start)
            except (OSError, OverflowError):
                continue
            found = [f or n in data for f, n in zip(found, needles, strict=True)]
    return tuple(found)


def test_bad_files_are_one_sentence(tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(she.EnvelopeError, match="no layerscope envelope"):
        commands.keygen(tmp_path / "junk", tmp_path / "key")
    with pytest.raises(she.EnvelopeError, match="cannot read"):
        commands.serve(tmp_path / "nothing")
    with pytest.raises(she.InputError, match="no array"):
        commands.query(tmp_path / "junk", tmp_path / "key", tmp_path / "junk")


def test_cost_writes_page_and_numbers(tmp_path, capsys):
    commands.cost("vgg:width=4", in_shape=(3, 16, 16), html=tmp_path / "c.html", json=tmp_path / "c.json")
    out = capsys.readouterr().out
    assert "gate by gate" in out
    assert "leveled" in out
    assert json.loads((tmp_path / "c.json").read_text())["layers"]
    assert "<table" in (tmp_path / "c.html").read_text()


FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(54, 10))

def strange():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(216, 10))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, Path]:
    """A small net for the bundled digits: its factory's name and its weights."""
    from layerscope import data, training

    folder = tmp_path_factory.mktemp("net")
    file = folder / "nets.py"
    file.write_text(FACTORY)
    scope: dict = {}
    exec(FACTORY, scope)
    net = scope["net"]()
    digits = data.load("digits")
    training.fit(net, (digits.x, digits.y), epochs=3, batch_size=50, optimizer="adamw", lr=1e-2, progress=False)
    torch.save(net.state_dict(), folder / "weights.pt")
    return f"{file}:net", folder / "weights.pt"


def test_from_a_network_and_data_to_answers_on_the_command_line(trained, tmp_path, capsys):
    """compile, keygen, serve, query, and nothing else; the server's file and the client's hold no key."""
    from layerscope import data

    source, weights = trained
    out = tmp_path / "net"
    commands.compile(source, out, checkpoint=weights, backend="plain", bits=3, act_bits=3, epochs=1, rounds=1)
    said = capsys.readouterr().out
    floats, integers = (float(part.split()[-1]) for part in said.split("accuracy:")[1].split(" of ")[:2])
    assert floats > 0.85
    assert integers > floats - 0.1
    assert "passed: 4 inputs" in said
    commands.keygen(tmp_path / "net.client", tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    holder = she.Client.load(tmp_path / "net.client")
    holder.load_keys(tmp_path / "key")
    secret = holder._session.secret()
    assert len(secret) >= 16
    assert secret in (tmp_path / "key").read_bytes()
    assert not any(secret in (tmp_path / name).read_bytes() for name in ("net.client", "net.server", "key.evaluation"))
    test = data.load("digits", "test")
    np.save(tmp_path / "images.npy", test.x[:40].numpy())
    code = f"from layerscope.cli import encrypted as c; c.serve({str(tmp_path / 'net.server')!r}, port=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rsplit(":", 1)[1])
        commands.query(tmp_path / "net.client", tmp_path / "key", tmp_path / "images.npy", port=port, clip=True)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    classes = [int(row.split()[2]) for row in capsys.readouterr().out.splitlines() if ": class" in row]
    assert sum(a == b for a, b in zip(classes, test.y[:40].tolist(), strict=True)) >= 30


def test_compile_says_what_is_wrong_before_any_work(trained, tmp_path):
    source, weights = trained
    out = tmp_path / "net"
    (tmp_path / "net.server").write_bytes(b"someone else's")
    with pytest.raises(she.InputError, match="--overwrite"):
        commands.compile(source, out, checkpoint=weights, backend="plain")
    assert (tmp_path / "net.server").read_bytes() == b"someone else's"
    commands.compile(source, out, checkpoint=weights, backend="plain", overwrite=True, selftest=False, samples=200)
    folder = tmp_path / "folder"
    folder.mkdir()
    commands.compile(source, folder, checkpoint=weights, backend="plain", selftest=False, samples=200)
    assert {path.name for path in folder.iterdir()} == {"net.client", "net.server"}
    assert she.Server.load(tmp_path / "net.server")
    with pytest.raises(LayerscopeError, match="checkpoint"):
        commands.compile(source, tmp_path / "b", checkpoint=tmp_path / "none.pt", backend="plain")
    with pytest.raises(she.UnsupportedModuleError, match="ReLU"):
        commands.compile(source.replace(":net", ":strange"), tmp_path / "c", backend="plain", samples=200)
    with pytest.raises(she.QuantizationError, match="bits"):
        commands.compile(source, tmp_path / "d", backend="plain", bits=9, samples=200)
    with pytest.raises(she.QuantizationError, match="share of the lookups"):
        commands.compile(source, tmp_path / "e", backend="plain", channels=0.0, samples=200)
    with pytest.raises(LayerscopeError, match="at least 50 samples"):
        commands.compile(source, tmp_path / "f", backend="plain", samples=10)
    with pytest.raises(LayerscopeError, match="cannot write"):
        commands.compile(source, weights / "g", backend="plain", samples=200)
    assert not any((tmp_path / f"{name}.client").exists() for name in "bcdef")
    if find_spec("concrete") is None:
        with pytest.raises(MissingExtraError, match=r"layerscope\[encrypted\]"):
            commands.compile(source, tmp_path / "h", checkpoint=weights)


def test_advise_measures_candidates_and_writes_page_and_numbers(trained, tmp_path, capsys):
    source, weights = trained
    commands.advise(
        source, checkpoint=weights, samples=600, epochs=0, most_loss=0.5, bits=(3, 4), act_bits=(3,), lookup_bits=(6,),
        channels=(1.0, 0.5), html=tmp_path / "a.html", json=tmp_path / "a.json",
    )  # fmt: skip
    out, progress = capsys.readouterr()
    assert "Take: bits=" in out
    assert "points lost" in progress
    assert max(len(line) for line in out.splitlines() if not line.startswith(("page", "numbers"))) <= 80
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["best"]["verdict"] == "chosen"
    assert "All candidates" in (tmp_path / "a.html").read_text()
