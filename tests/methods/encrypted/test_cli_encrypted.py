"""The commands over loopback, in processes of their own, and the cost command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from layerscope.cli import encrypted as commands
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
