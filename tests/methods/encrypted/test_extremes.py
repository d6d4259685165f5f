"""Networks and inputs at the edge: pruned channels, extreme scales, overflow, random small nets, skewed envelopes."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.backends.circuit import CircuitNet
from layerscope.methods.encrypted.protocol import envelope
from layerscope.methods.encrypted.quantizer import log_quantize
from methods.encrypted.example_nets import made


def exact(net: nn.Module, x: torch.Tensor, **kwargs) -> she.QuantizedNet:
    """Quantised, and `circuit` equal to `plain` on extremal and random codes."""
    q = she.quantize(net.eval(), x, **kwargs)
    top = 2**q.graph.input.bits - 1
    codes = torch.randint(0, top + 1, (6, *x.shape[1:]), generator=torch.Generator().manual_seed(1))
    codes[0], codes[1] = 0, top
    plain = q.integers(codes, debug=True)
    for accumulator in ("csa", "range"):
        got = CircuitNet(q.graph, accumulator).run(codes.numpy())
        assert (got.reshape(6, -1) == plain.reshape(6, -1).numpy()).all()
    return q


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_random_small_networks_are_bit_exact(seed):
    rng = np.random.default_rng(seed)
    channels, size = int(rng.integers(1, 4)), int(rng.integers(4, 8))
    layers: list[nn.Module] = []
    c, n = channels, size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(int(rng.integers(1, 4))):
            out, k = int(rng.integers(1, 5)), int(rng.integers(1, min(4, n + 1)))
            stride, padding = int(rng.integers(1, 4)), int(rng.integers(0, k))
            groups = int(np.gcd(c, out)) if rng.random() < 0.3 else 1
            layers.append(nn.Conv2d(c, out, k, stride, padding, groups=groups, bias=bool(rng.random() < 0.7)))
            n = (n + 2 * padding - k) // stride + 1
            if rng.random() < 0.6:
                norm = nn.BatchNorm2d(out)
                norm.weight.data.copy_(torch.randn(out))  # negative gains too
                norm.running_var.copy_(torch.tensor(10.0 ** rng.uniform(-8, 3, out)))
                norm.running_mean.copy_(torch.randn(out))
                layers.append(norm)
            layers.append(nn.ReLU() if rng.random() < 0.8 else nn.ReLU6())
            c = out
            if n >= 3 and rng.random() < 0.5:
                pool = nn.MaxPool2d if rng.random() < 0.5 else nn.AvgPool2d
                layers.append(pool(3, 1, 1) if rng.random() < 0.5 else pool(2, 1))
                n -= not layers[-1].padding
        layers += [nn.Flatten(), nn.Linear(c * n * n, 2)]
        x = torch.rand(24, channels, size, size) * float(10.0 ** rng.uniform(-6, 6)) - float(rng.random())
    exact(nn.Sequential(*layers), x, bits=int(rng.integers(2, 6)), act_bits=int(rng.integers(1, 6)))


def conv_net() -> tuple[nn.Sequential, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2))
        return net, torch.rand(40, 1, 6, 6)


def test_all_zero_weights_and_dead_channels():
    net, x = conv_net()
    with torch.no_grad():
        net[0].weight.zero_()
        net[3].weight[0] = 0
    q = exact(net, x, bits=3, act_bits=3)
    assert torch.isfinite(q(x)).all()
    assert she.cost(q).bootstraps >= 0


def test_a_pruned_channel_is_its_bias_and_does_not_overflow():
    """gamma = 1e-30 leaves beta: the bias in units of the weights would be 1e30."""
    net, x = conv_net()
    with torch.no_grad():
        net[1].weight[0] = 1e-30
        net[1].bias[:] = torch.tensor([0.7, 0.2, -0.1])
    q = exact(net, x, bits=4, act_bits=6)
    first = she.quantize(nn.Sequential(*net[:3]).eval(), x, bits=4, act_bits=6)
    assert torch.allclose(first(x)[:, 0], torch.full_like(first(x)[:, 0], 0.7), atol=0.03)
    assert max(layer.width for layer in q.report.layers) < 40


def test_channels_twenty_orders_of_magnitude_apart():
    net, x = conv_net()
    with torch.no_grad():
        net[0].weight[1] *= 1e-20
        net[1].bias.zero_()
        net[1].running_mean.zero_()
    q = exact(net, x, bits=4, act_bits=4)
    assert max(int(s) for op in q.graph.ops if op.kind == "requant" for s in op.shift) <= 60
    half = she.quantize(nn.Sequential(*net[:3]).eval(), x, bits=4, act_bits=4)(x)
    assert float(half[:, 1].abs().max()) == 0.0


def test_tiny_variance_and_negative_gamma():
    net, x = conv_net()
    with torch.no_grad():
        net[1].running_var.fill_(1e-12)
        net[1].weight.copy_(torch.tensor([-1.0, 1.0, -0.5]))
    exact(net, x, bits=4, act_bits=4)


def test_a_stack_without_activations_is_refused_before_it_wraps_around():
    net = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(16)]).eval()
    x = torch.rand(8, 1, 6, 6)
    with pytest.raises(she.WidthError, match="53"):
        she.quantize(net, x, bits=5, act_bits=8)
    report = she.cost(net, (1, 6, 6), bits=5, act_bits=8)
    assert any("53" in layer.reason for layer in report.unpriced)


def test_a_residual_sum_of_incomparable_scales_is_refused():
    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.a.weight)
            nn.init.constant_(self.b.weight, 2.0**-60)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(she.WidthError, match="add"):
        she.quantize(Far().eval(), torch.rand(8, 1, 4, 4))


def test_common_factors_move_into_the_scale():
    w = torch.tensor([[4.0, -8.0, 0.0], [1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    codes = log_quantize(w, 4)
    less = codes.reduced()
    assert torch.equal(less.dequantize(), codes.dequantize())
    assert less.q.abs().flatten(1).amax(1).tolist() == [2, 4, 0]


@pytest.mark.parametrize("bad", [None, "text", np.zeros((4, 1, 6, 6)), torch.zeros(6), torch.zeros(4, 1, 5, 6)])
def test_calibration_of_the_wrong_kind(bad):
    net, _ = conv_net()
    with pytest.raises((she.QuantizationError, she.UnsupportedModuleError)):
        she.quantize(nn.Sequential(*net, nn.Flatten(), nn.Linear(18, 2)).eval(), bad)


@pytest.mark.parametrize("reach", [(1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_input_ranges_that_are_none(reach):
    net, x = conv_net()
    with pytest.raises(she.QuantizationError, match="range"):
        she.quantize(net.eval(), x, input_range=reach)


@pytest.mark.parametrize(
    "bad", [None, "text", np.zeros((1, 1, 6, 6)), torch.zeros(1, 1, 6, 6, dtype=torch.complex64), torch.zeros(1, 36)]
)
def test_inputs_of_the_wrong_kind(bad):
    net, x = conv_net()
    q = she.quantize(net.eval(), x)
    with pytest.raises(she.InputError):
        q(bad)
    with pytest.raises(she.InputError):
        q.integers(bad)


def test_negative_zero_and_half_precision_are_ordinary():
    net, x = conv_net()
    q = she.quantize(net.eval(), x, input_range=(0.0, 1.0))
    assert torch.equal(q(torch.full((1, 1, 6, 6), -0.0)), q(torch.zeros(1, 1, 6, 6)))
    assert q(x.half()).shape == q(x).shape
    client = she.compile(q, "plain").client()
    client.keygen()
    for batch in (x[:1].bfloat16(), x[:1].clone().requires_grad_(), x[:1].numpy(), x[:1].tolist()):
        assert client.encrypt(batch, clip=True)
    for batch in ([[1.0], [1.0, 2.0]], "text", None, x[:1].to(torch.complex64)):
        with pytest.raises(she.InputError):
            client.encrypt(batch)


# envelopes


@pytest.fixture(scope="module")
def rig():
    net, x = made("residual")
    q = she.quantize(net, x, bits=3, act_bits=3)
    compiled = she.compile(q, "plain")
    client = compiled.client()
    client.keygen()
    return q, compiled, client, compiled.server(), x


def test_an_old_answer_is_not_taken_for_a_new_one(rig):
    q, _, client, server, x = rig
    first, second = client.encrypt(x[:1], canary=True), client.encrypt(x[1:2], canary=True)
    old = server.run(first, client.evaluation_keys())
    assert torch.equal(client.decrypt(old, request=first), q(x[:1]))
    with pytest.raises(she.KeyMismatchError, match="another request"):
        client.decrypt(old, request=second)
    again = server.run(first, client.evaluation_keys())  # a replayed request: the same answer, nothing else
    assert again == old


def test_version_skew_in_both_directions(rig):
    _, _, client, server, x = rig
    request = client.encrypt(x[:1])
    for version, word in (
        (envelope.FORMAT + 1, "upgrade"),
        (envelope.FORMAT - 1, "make it again"),
        (0, "make it again"),
    ):
        with pytest.raises(she.EnvelopeError, match=word):
            server.run(request[:4] + struct.pack(">H", version) + request[6:], client.evaluation_keys())


def resealed(data: bytes, kind, payload: bytes | None = None, **changes) -> bytes:
    header, old = envelope.open_envelope(data, kind)
    return envelope.seal(replace(header, **changes), bytes(old) if payload is None else payload)


def test_envelopes_sealed_anew_with_lies_in_the_header(rig):
    """A checksum authenticates nobody: what it protects must still be checked."""
    _, _, client, server, x = rig
    request, keys = client.encrypt(x[:2]), client.evaluation_keys()
    lies = [
        {"samples": -1},
        {"samples": "2"},
        {"net": ""},
        {"net": None},
        {"key": ""},
        {"engine": 7},
    ]
    for lie in lies:
        with pytest.raises(she.EnvelopeError):
            server.run(resealed(request, "request", **lie), keys)
    answer = server.run(request, keys)
    for lie in ({"samples": 3}, {"net": "x"}, {"key": "x"}, {"engine_version": "9"}):
        with pytest.raises(she.EnvelopeError):
            client.decrypt(resealed(answer, "answer", **lie))
    parts = envelope.unpack(envelope.open_envelope(answer, "answer")[1])
    from layerscope.methods.encrypted.backends.serial import array_to_bytes

    short = envelope.pack([parts[0], array_to_bytes(np.zeros(1, np.int64))])
    with pytest.raises(she.EnvelopeError, match="one row of logits"):
        client.decrypt(resealed(answer, "answer", short))
    with pytest.raises(she.EnvelopeError):
        client.decrypt(resealed(answer, "answer", b"", samples=0))
    wide = envelope.pack([array_to_bytes(np.full((1, 10, 10), 99))] * 2)
    with pytest.raises(she.EnvelopeError, match="no codes"):
        server.run(resealed(request, "request", wide), keys)


def test_a_failed_keygen_leaves_no_half_of_a_secret(rig, tmp_path):
    client = rig[1].client()
    with pytest.raises(she.KeyFileError):
        client.keygen(tmp_path / "missing" / "key")
    (tmp_path / "folder").mkdir()
    with pytest.raises(she.KeyFileError):
        client.keygen(tmp_path / "folder", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]


def test_server_files_cut_or_swapped(rig, tmp_path):
    _, compiled, client, _, _ = rig
    path = compiled.server().save(tmp_path / "server")
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(she.EnvelopeError, match="cut short"):
        she.Server.load(path)
    with pytest.raises(she.EnvelopeError, match="got a client"):
        she.Server.load(client.save(tmp_path / "client"))
    path.write_bytes(resealed(data, "server", envelope.pack([b"junk", b""])))
    with pytest.raises(she.EnvelopeError):
        she.Server.load(path).run(client.encrypt(rig[4][:1]), client.evaluation_keys())
