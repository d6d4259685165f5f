"""Folding, lowering, ranges and the reference backend; the circuit backend equals it bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from layerscope.methods.encrypted import plain
from layerscope.methods.encrypted.backends.circuit import CircuitNet
from layerscope.methods.encrypted.circuits.accumulators import ACCUMULATORS
from layerscope.methods.encrypted.errors import (
    EncryptedError,
    InputError,
    QuantizationError,
    UnsupportedModuleError,
)
from layerscope.methods.encrypted.graph import Conv, Graph, Requant, width_of
from layerscope.methods.encrypted.network import quantize
from layerscope.methods.encrypted.trace import trace
from methods.encrypted.example_nets import NETS, made, powers_of_two_


@pytest.mark.parametrize("name", NETS)
def test_folded_graph_equals_the_float_network(name):
    net, x = made(name)
    graph = trace(net, x.shape[1:])
    assert not [s for s in graph.steps if s.op in ("norm", "opaque")]
    expected = net.double()(x.double())
    assert torch.allclose(graph.run(x.double())[-1].flatten(1), expected, atol=1e-10)


def test_a_norm_after_a_conv_leaves_nothing_behind():
    net, x = made("residual")
    assert [s.op for s in trace(net, x.shape[1:]).steps].count("scale") == 0
    net, x = made("forward_fold")
    assert [s.op for s in trace(net, x.shape[1:]).steps].count("scale") == 1


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shift", ["exact", "truncating"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_circuit_equals_plain_bit_for_bit(name, shift, bits):
    net, x = made(name)
    q = quantize(net, x, bits=bits, act_bits=3, shift=shift)
    codes = torch.randint(0, 8, (6, *x.shape[1:]), generator=torch.Generator().manual_seed(1))
    codes[0], codes[1] = 0, 7
    expected = q.integers(codes, debug=True)
    out = CircuitNet(q.graph).run(codes.numpy())
    assert (out.reshape(6, -1) == expected.numpy()).all()


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
def test_every_accumulator_gives_the_same_network(accumulator):
    net, x = made("residual")
    q = quantize(net, x, bits=3, act_bits=2)
    codes = q.encode(x[:5])
    audited = CircuitNet(q.graph, accumulator)
    assert (audited.run(codes.numpy()).reshape(5, -1) == q.integers(codes).numpy()).all()
    audit = audited.audit()
    assert audit.gates == sum(u.circuit.gates * len(u.positions) for units in audited.units for u in units)
    assert audit.and_depth >= max(layer.own_and_depth for layer in audit.layers)


def test_exactly_representable_weights_are_exact():
    """With power-of-two weights and inputs on the grid the first layer's accumulator is the float, exactly."""
    net, _ = made("residual")
    powers_of_two_(net)
    body = nn.Sequential(net.conv1).eval()
    grid = torch.randint(0, 16, (20, 1, 10, 10), generator=torch.Generator().manual_seed(0)).float()
    grid.view(-1)[:2] = torch.tensor([0.0, 15.0])
    q = quantize(body, grid, bits=4, act_bits=4)
    assert torch.equal(q(grid).double(), body.double()(grid.double()))


def test_more_bits_come_closer_to_the_float_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 3),
        ).eval()
        x = torch.rand(64, 1, 10, 10)
    powers_of_two_(net)
    expected = net.double()(x.double()).detach()
    errors = []
    for act_bits in (2, 4, 8):
        q = quantize(net.float(), x, bits=5, act_bits=act_bits, input_bits=8)
        errors.append(float((q(x).double() - expected).square().mean() / expected.var()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_ranges_are_sound_and_reached():
    """Brute force: the extremal codes of each first-layer channel reach exactly lo and hi."""
    net, x = made("branches")
    q = quantize(nn.Sequential(net.left).eval(), x, bits=4, act_bits=4)
    conv, value = q.graph.ops[1], q.graph.values[1]
    assert isinstance(conv, Conv)
    for channel in range(3):
        reached = []
        for flip in (1, -1):
            centre = np.zeros((1, 2, 8, 8), np.int64)
            taps = np.where(flip * conv.q[channel] > 0, 15, 0)
            centre[0, :, 1:6:2, 1:6:2] = taps
            out = plain.run(q.graph, torch.from_numpy(centre))
            reached.append(int(out[0, channel, 3, 3]))
        interior = int(conv.bias[channel, 3, 3]) if conv.bias.shape[1:] != (1, 1) else int(conv.bias[channel, 0, 0])
        q_row = conv.q[channel]
        assert reached == [interior + 15 * q_row[q_row > 0].sum(), interior + 15 * q_row[q_row < 0].sum()]
        assert value.lo[channel] <= reached[1]
        assert value.hi[channel] >= reached[0]


@pytest.mark.parametrize("name", NETS)
def test_no_input_leaves_the_sound_ranges(name):
    net, x = made(name)
    for shift in ("exact", "truncating"):
        q = quantize(net, x, bits=4, act_bits=4, shift=shift)
        g = torch.Generator().manual_seed(3)
        codes = torch.randint(0, 2, (200, *x.shape[1:]), generator=g) * 15
        q.integers(codes, debug=True)


def test_width_of_brute_force():
    for lo in range(-20, 21):
        for hi in range(lo, 21):
            width = width_of(lo, hi)
            fits = (
                (lambda w, lo=lo, hi=hi: -(2 ** (w - 1)) <= lo and hi < 2 ** (w - 1))
                if lo < 0
                else (lambda w, hi=hi: hi < 2**w)
            )
            assert fits(width)
            assert width == 1 or not fits(width - 1)


def test_relu_and_shift_commute_and_pool_commutes_with_the_activation():
    acc = torch.arange(-300, 300).view(1, 1, 20, 30)
    for r in range(6):
        assert torch.equal(acc.clamp(min=0) >> r, (acc >> r).clamp(min=0))
        requant = Requant("r", (0,), (1, 20, 30), np.array([r]), 4)
        from layerscope.methods.encrypted.graph import MaxPool, Window

        pool = MaxPool("p", (0,), (1, 10, 15), Window((2, 2), (2, 2)))
        shuffled = acc.flatten()[torch.randperm(600, generator=torch.Generator().manual_seed(r))].view(1, 1, 20, 30)
        first = plain.execute(pool, [plain.execute(requant, [shuffled])])
        second = plain.execute(requant, [plain.execute(pool, [shuffled])])
        assert torch.equal(first, second)


def test_lookup_limit_raises_the_shifts():
    from layerscope.methods.encrypted.backends.concrete_emit import lookup_widths

    net, x = made("residual")
    free = quantize(net, x, bits=4, act_bits=4)
    narrow = quantize(net, x, bits=4, act_bits=4, lookup_bits=5)
    acts = {op.name for op in narrow.graph.ops if isinstance(op, Requant)}
    assert max(w for n, w in lookup_widths(narrow.graph).items() if n in acts) <= 5
    assert max(w for n, w in lookup_widths(free.graph).items() if n in acts) > 5


def test_graph_parts_round_trip_and_fingerprint():
    net, x = made("branches")
    q = quantize(net, x)
    structure, arrays = q.graph.to_parts()
    again = Graph.from_parts(structure, arrays)
    assert again.fingerprint == q.graph.fingerprint
    codes = q.encode(x)
    assert torch.equal(plain.run(again, codes), plain.run(q.graph, codes))
    other = quantize(net, x, act_bits=3)
    assert other.graph.fingerprint != q.graph.fingerprint


def test_report_lists_every_operation():
    net, x = made("residual")
    q = quantize(net, x)
    report = q.report
    assert [layer.name for layer in report.layers][:3] == ["input", "conv1", "relu"]
    assert all(0 <= layer.weight_error < 0.06 for layer in report.layers if layer.weight_error is not None)
    assert report.fingerprint == q.graph.fingerprint


# refusals


@pytest.mark.parametrize(
    ("layer", "path", "words"),
    [
        (nn.GroupNorm(2, 4), "1", "batch norm"),
        (nn.LayerNorm([4, 6, 6]), "1", "batch norm"),
        (nn.GELU(), "1", "nn.ReLU"),
        (nn.BatchNorm2d(4, track_running_stats=False), "1", "track_running_stats"),
    ],
)
def test_modules_without_an_integer_form_are_refused_by_path(layer, path, words):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    with pytest.raises(UnsupportedModuleError, match=words) as caught:
        quantize(net, torch.randn(4, 1, 8, 8))
    assert caught.value.path == path


def test_training_mode_is_refused():
    net, x = made("residual")
    net.norm1.train()
    with pytest.raises(UnsupportedModuleError, match=r"norm1.*training mode"):
        quantize(net, x)


def test_a_norm_that_cannot_fold_is_refused():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return torch.relu(self.norm(y)) + torch.relu(y)

    net = Shared()
    with torch.no_grad():
        net(torch.randn(8, 1, 6, 6))
    with pytest.raises(UnsupportedModuleError, match="cannot be folded"):
        quantize(net.eval(), torch.randn(8, 1, 6, 6))


def test_control_flow_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModuleError, match="cannot be traced"):
        trace(Branching().eval(), (1, 4, 4))


@pytest.mark.parametrize(
    "calib", [torch.zeros(0, 1, 10, 10), torch.zeros(4, 1, 10, 10), torch.full((4, 1, 10, 10), float("nan"))]
)
def test_bad_calibration_is_refused(calib):
    net, _ = made("residual")
    with pytest.raises(QuantizationError):
        quantize(net, calib)


@pytest.mark.parametrize(
    "kwargs", [{"bits": 9}, {"act_bits": 0}, {"shift": "left"}, {"lookup_bits": 1}, {"rounding": "up"}]
)
def test_bad_settings_are_refused(kwargs):
    net, x = made("residual")
    with pytest.raises(QuantizationError):
        quantize(net, x, **kwargs)


def test_bad_inputs_are_refused():
    net, x = made("residual")
    q = quantize(net, x)
    with pytest.raises(InputError, match="shape"):
        q(x[:, :, :5])
    with pytest.raises(InputError, match="NaN"):
        q(torch.full_like(x[:1], float("nan")))
    with pytest.raises(InputError, match="clip=True"):
        q(x * 5)
    assert q.encode(x * 5, clip=True).max() == 15
    with pytest.raises(InputError, match="expected float"):
        q(torch.zeros(1, 1, 10, 10, dtype=torch.int64))
    with pytest.raises(InputError, match="integer codes"):
        q.integers(x)
    with pytest.raises(InputError, match=r"0\.\.15"):
        q.integers(torch.full((1, 1, 10, 10), 16))
    with pytest.raises(EncryptedError, match="carry"):
        CircuitNet(q.graph).run(np.full((1, 1, 10, 10), 16))


def test_bias_correction_undoes_the_mean_shift_of_rounding():
    """On the calibration batch every channel of the first layer then has the float network's mean, to one unit."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(300, 2, 6, 6, generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).eval()
    with torch.no_grad():
        want = net[0](x).double().mean((0, 2, 3))

    def first_layer(correct: bool) -> tuple[torch.Tensor, torch.Tensor]:
        made = quantize(net, x, bits=2, act_bits=4, correct_bias=correct)
        op, value = made.graph.ops[1], made.graph.values[1]
        assert op.kind == "conv"
        acc = plain.execute(op, [made.encode(x)]).double().mean((0, 2, 3)) * torch.from_numpy(value.scale)
        half = made.graph.ops[2].shift  # half a step of the activation stands in the bias too
        steps = np.where(half > 0, 2.0 ** (half - 1), 0) * value.scale
        return (acc - torch.from_numpy(steps) - want).abs(), torch.from_numpy(value.scale)

    off, unit = first_layer(True)
    assert bool((off < unit).all())
    assert float(first_layer(False)[0].max()) > 3 * float(unit.max())


def test_a_few_samples_correct_little():
    """What a batch cannot tell from noise is not corrected; one sample corrects nothing."""
    net, x = made("residual")
    one, none = (quantize(net, x[:1], bits=2, input_range=(-1, 1), correct_bias=c) for c in (True, False))
    assert one.graph.fingerprint == none.graph.fingerprint
