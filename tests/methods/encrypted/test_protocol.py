"""Client and server: the round trip, and a typed error in every cell of the bad-input matrix, never a number."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import threading

import pytest
import torch

from layerscope.errors import LayerscopeError, MissingExtraError
from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.backends import concrete
from layerscope.methods.encrypted.protocol import envelope
from layerscope.methods.encrypted.protocol.service import post
from methods.encrypted.example_nets import made


@pytest.fixture(scope="module")
def rig():
    net, x = made("residual")
    qnet = she.quantize(net, x, bits=3, act_bits=3)
    compiled = she.compile(qnet, "plain")
    client, server = compiled.client(), compiled.server()
    client.keygen()
    return qnet, compiled, client, server, x


@pytest.mark.parametrize("backend", ["plain", "circuit"])
def test_round_trip_equals_the_reference(rig, backend):
    qnet, _, _, _, x = rig
    compiled = she.compile(qnet, backend, selftest=1)
    client, server = compiled.client(), compiled.server()
    client.keygen()
    assert "passed: 3 inputs" in server.selftest
    keys = client.evaluation_keys()
    answer = server.run(client.encrypt(x[:3], canary=True), keys)
    assert torch.equal(client.decrypt(answer), qnet(x[:3]))
    assert torch.equal(client.decrypt(answer, raw=True), qnet.integers(qnet.encode(x[:3])))


def test_files_round_trip(rig, tmp_path):
    qnet, compiled, _, server, x = rig
    client = compiled.client()
    client.keygen(tmp_path / "key")
    server.save(tmp_path / "server")
    client.save(tmp_path / "client")
    other = she.Client.load(tmp_path / "client")
    other.load_keys(tmp_path / "key")
    answer = she.Server.load(tmp_path / "server").run(other.encrypt(x[:2]), other.evaluation_keys())
    assert torch.equal(client.decrypt(answer), qnet(x[:2]))
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_client_file_holds_no_weights(rig, tmp_path):
    qnet, compiled, _, _, _ = rig
    data = compiled.client().save(tmp_path / "client").read_bytes()
    for op in qnet.graph.ops:
        if op.kind == "conv":
            assert op.q.tobytes() not in data
    assert len(data) < 6000


def test_secrets_never_show(rig):
    _, _, client, server, _ = rig
    secret = client._session.secret()
    for thing in (client, server, client._session):
        for text in (repr(thing), str(thing)):
            assert secret.hex() not in text
            assert repr(secret) not in text
    assert not [name for name in vars(server) if "secret" in name.lower()]


def test_clip_counts(rig):
    _, _, client, _, x = rig
    wide = x[:1].clone()
    wide.view(-1)[:3] = 9.0
    client.encrypt(wide, clip=True)
    assert client.clipped == 3


# the matrix of bad input: one row a mistake


def test_bad_inputs_of_encrypt(rig):
    _, compiled, client, _, x = rig
    bad = {
        "shape": x[:1, :, :5],
        "outside": x[:1] * 7,
        "NaN": torch.full_like(x[:1], float("nan")),
        "infinity": torch.full_like(x[:1], float("inf")),
        "float": torch.zeros(1, 1, 10, 10, dtype=torch.int64),
        "empty": x[:0],
    }
    for words, value in bad.items():
        with pytest.raises(she.InputError, match=words):
            client.encrypt(value)
    with pytest.raises(she.KeyFileError, match="keygen"):
        compiled.client().encrypt(x[:1])


def test_keys_that_do_not_belong_together(rig):
    _, compiled, client, server, x = rig
    stranger = compiled.client()
    stranger.keygen()
    request = client.encrypt(x[:1])
    with pytest.raises(she.KeyMismatchError, match="encrypted under the key"):
        server.run(request, stranger.evaluation_keys())
    answer = server.run(request, client.evaluation_keys())
    with pytest.raises(she.KeyMismatchError, match="decrypt with the client"):
        stranger.decrypt(answer)

    net, other_x = made("residual", seed=1)
    other = she.compile(she.quantize(net, other_x, bits=3, act_bits=3), "plain")
    other_client, other_server = other.client(), other.server()
    other_client.keygen()
    with pytest.raises(she.KeyMismatchError, match="made for the network"):
        other_server.run(request, client.evaluation_keys())
    with pytest.raises(she.KeyMismatchError, match="made for the network"):
        server.run(request, other_client.evaluation_keys())
    with pytest.raises(she.KeyMismatchError, match="made for the network"):
        other_client.decrypt(answer)


def test_an_evaluation_key_under_a_false_name(rig):
    _, compiled, client, server, x = rig
    stranger = compiled.client()
    stranger.keygen()
    header, _ = envelope.open_envelope(client.evaluation_keys(), "evalkeys")
    _, payload = envelope.open_envelope(stranger.evaluation_keys(), "evalkeys")
    forged = envelope.seal(header, bytes(payload))
    with pytest.raises(she.KeyMismatchError, match="name its header claims"):
        server.run(client.encrypt(x[:1]), forged)


def test_damage_truncation_and_newer_formats(rig):
    _, _, client, server, x = rig
    keys, request = client.evaluation_keys(), client.encrypt(x[:1])
    answer = server.run(request, keys)
    newer = request[:4] + struct.pack(">H", envelope.FORMAT + 1) + request[6:]
    cases = {
        "cut short": request[:-3],
        "no layerscope envelope": b"hello",
        "checksum": request[:-1] + bytes([request[-1] ^ 1]),
        "format 3": newer,
        "inside its header": request[:40],
    }
    for words, data in cases.items():
        with pytest.raises(she.EnvelopeError, match=words):
            server.run(data, keys)
    with pytest.raises(she.EnvelopeError, match="got a request"):
        server.run(request, request)
    with pytest.raises(she.EnvelopeError, match="expected a request, got a"):
        server.run(answer, keys)
    with pytest.raises(she.EnvelopeError, match="expected the bytes"):
        client.decrypt("text")
    for position in range(0, len(answer), 7):  # every flipped byte, header included, is found
        damaged = bytearray(answer)
        damaged[position] ^= 0x20
        with pytest.raises(she.EnvelopeError):
            client.decrypt(bytes(damaged))


def test_an_envelope_with_missing_samples(rig):
    _, _, client, server, x = rig
    header, payload = envelope.open_envelope(client.encrypt(x[:2]), "request")
    fewer = envelope.seal(header, envelope.pack(envelope.unpack(payload)[:1]))
    with pytest.raises(she.EnvelopeError, match="announces 2"):
        server.run(fewer, client.evaluation_keys())
    garbled = envelope.seal(header, b"\x00\x01")
    with pytest.raises(she.EnvelopeError, match="add up"):
        server.run(garbled, client.evaluation_keys())
    not_codes = envelope.seal(header, envelope.pack([b"zz", b"zz"]))
    with pytest.raises(she.EnvelopeError, match="no array"):
        server.run(not_codes, client.evaluation_keys())


def test_a_canary_that_comes_back_wrong(rig):
    _, _, client, server, x = rig
    answer = server.run(client.encrypt(x[:1], canary=True), client.evaluation_keys())
    header, payload = envelope.open_envelope(answer, "answer")
    swapped = envelope.seal(header, envelope.pack(envelope.unpack(payload)[::-1]))
    with pytest.raises(she.KeyMismatchError, match="canary"):
        client.decrypt(swapped)


def test_another_engine_or_version(rig, monkeypatch):
    _, _, client, server, x = rig
    header, payload = envelope.open_envelope(client.encrypt(x[:1]), "request")
    from dataclasses import replace

    other = envelope.seal(replace(header, engine_version="0.0"), bytes(payload))
    with pytest.raises(she.EnvelopeError, match="same engine and version"):
        server.run(other, client.evaluation_keys())
    late = she.Client(client.spec, client.net, "plain", "0.0")
    with pytest.raises(she.EnvelopeError, match="compiled with"):
        late.keygen()


def test_key_files_are_guarded(rig, tmp_path):
    _, compiled, _, _, _ = rig
    client = compiled.client()
    path = tmp_path / "key"
    client.keygen(path)
    before = path.read_bytes()
    with pytest.raises(she.KeyFileError, match="overwrite=True"):
        client.keygen(path)
    assert path.read_bytes() == before
    client.keygen(path, overwrite=True)
    assert path.read_bytes() != before
    path.chmod(0o644)
    with pytest.raises(she.KeyFileError, match="chmod 600"):
        client.load_keys(path)
    with pytest.raises(she.KeyFileError, match="no key file"):
        client.load_keys(tmp_path / "nothing")
    path.chmod(0o600)
    os.remove(f"{path}.evaluation")
    client.load_keys(path)
    with pytest.raises(she.KeyFileError, match="not kept"):
        client.evaluation_keys()


def test_bad_compile_arguments(rig):
    qnet = rig[0]
    with pytest.raises(she.EngineError, match="at least 128"):
        she.compile(qnet, "plain", security=80)
    with pytest.raises(she.EngineError, match="probability"):
        she.compile(qnet, "plain", max_failure=0)
    with pytest.raises(she.EngineError, match="did you mean 'plain'"):
        she.compile(qnet, "plane")
    with pytest.raises(she.EngineError, match="polynomial baseline"):
        she.compile(qnet, "ckks")


def test_too_wide_for_the_engine(rig):
    from layerscope.methods.encrypted.backends.concrete_emit import check

    net, x = made("residual")
    wide = she.quantize(net, x, bits=5, act_bits=8)
    with pytest.raises(she.WidthError, match="Three remedies") as caught:
        check(wide.graph)
    assert caught.value.width > caught.value.limit == 6
    truncating = she.quantize(net, x, bits=3, act_bits=2, lookup_bits=4, shift="truncating")
    with pytest.raises(she.EngineError, match="shift='exact'"):
        check(truncating.graph)


def test_a_missing_engine_names_the_extra(rig, monkeypatch):
    def missing(name):
        raise concrete.PackageNotFoundError(name)

    monkeypatch.setattr(concrete, "version", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'layerscope\[encrypted\]'"):
        she.compile(rig[0])


def test_an_unchecked_engine_version_is_refused(rig, monkeypatch):
    monkeypatch.setattr(concrete, "version", lambda name: "1.0.0")
    with pytest.raises(she.EngineError, match="never checked"):
        she.compile(rig[0], "concrete")


# the service


def test_service_over_loopback(rig):
    qnet, _, client, server, x = rig
    service = she.Service(server)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        request = client.encrypt(x[:2])
        with pytest.raises(she.EncryptedError, match="POST it to /keys"):
            post("127.0.0.1", service.port, "/run", request)
        post("127.0.0.1", service.port, "/keys", client.evaluation_keys())
        answer = post("127.0.0.1", service.port, "/run", request)
        assert torch.equal(client.decrypt(answer), qnet(x[:2]))
        with pytest.raises(she.EncryptedError, match="no layerscope envelope"):
            post("127.0.0.1", service.port, "/run", b"junk")
        with pytest.raises(she.EncryptedError, match="POST /keys or /run"):
            post("127.0.0.1", service.port, "/else", b"")
    finally:
        service.shutdown()
        service.server_close()
        thread.join()
    with pytest.raises(she.EncryptedError, match="no service"):
        post("127.0.0.1", service.port, "/run", request)


def test_importing_the_room_imports_no_torch_and_no_engine():
    code = (
        "import sys, json; from layerscope.methods import encrypted; dir(encrypted);"
        "print(json.dumps([m for m in ('torch', 'concrete', 'tenseal', 'openfhe') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []


def test_supports_says_why_not_as_a_value(rig):
    from layerscope.methods.encrypted.backends.engine import supports
    from layerscope.methods.encrypted.backends.registry import engine

    assert supports(engine("plain"), rig[0].graph).ok
    net, x = made("residual")
    refused = supports(engine("concrete"), she.quantize(net, x, bits=5, act_bits=8).graph)
    assert not refused.ok
    assert "concrete" in refused.reason


def test_what_is_no_network_and_files_that_cannot_be_written_are_typed_errors(tmp_path):
    net, x = made("residual")
    for wrong in (lambda: she.cost("resnet18", (3, 32, 32)), lambda: she.quantize("resnet18", x)):
        with pytest.raises(she.UnsupportedModuleError, match=r"is no torch\.nn\.Module but str"):
            wrong()
    with pytest.raises(she.QuantizationError, match="expected an integer network, got str"):
        she.compile("resnet18", "plain")
    compiled = she.compile(she.quantize(net, x, bits=3, act_bits=3), "plain")
    for side in (compiled.client(), compiled.server()):
        with pytest.raises(LayerscopeError, match="cannot write"):
            side.save(tmp_path)
