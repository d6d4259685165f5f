"""The budget before any key: counts against the exact circuits, any network, presets, advice, report."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from torch import nn

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.backends.circuit import CircuitNet
from layerscope.methods.encrypted.costs import timings
from layerscope.methods.encrypted.costs.timings import PRESETS, Timing
from methods.encrypted.example_nets import made

FLAT = Timing("flat", "test", gate=1.0, bit=((20, 1.0),), lookup=((20, 1.0),))


def unpadded() -> tuple[nn.Module, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2, bias=False), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip
    return net.eval(), torch.rand(64, 1, 8, 8, generator=g)


def test_counts_equal_the_circuits_where_there_is_no_border_and_no_bias():
    net, x = unpadded()
    q = she.quantize(net, x, bits=3, act_bits=3)
    report = she.cost(q, accumulators=("csa",), gate=FLAT, lookup=FLAT)
    audit = {layer.name: layer for layer in CircuitNet(q.graph).audit().layers}
    for layer in report.layers:
        exact = audit[layer.name]
        if layer.kind in ("requant", "maxpool", "sumpool"):
            assert layer.gates_of("csa") == exact.gates, layer.name
            assert layer.and_depth == exact.own_and_depth
        else:  # a bias changes a handful of gates
            assert layer.gates_of("csa") == pytest.approx(exact.gates, rel=0.1)
            assert abs(layer.and_depth - exact.own_and_depth) <= 2


def test_sampled_accumulators_are_close_to_exact():
    net, x = unpadded()
    q = she.quantize(net, x, bits=3, act_bits=3)
    report = she.cost(q, accumulators=("fixed16", "mixed", "range", "csa"))
    for name in report.accumulators:
        assert report.gates(name) == pytest.approx(CircuitNet(q.graph, name).audit().gates, rel=0.15)
    assert report.gates("csa") < report.gates("range") < report.gates("mixed") <= report.gates("fixed16")


def test_bootstraps_and_seconds_by_hand():
    net, x = unpadded()
    q = she.quantize(net, x, bits=3, act_bits=3, lookup_bits=5)
    report = she.cost(q, accumulators=("csa",), gate=FLAT, lookup=FLAT)
    by_hand = 0
    for op in q.graph.ops:
        if op.kind == "requant":
            by_hand += int((op.shift + 1).sum()) * op.shape[1] * op.shape[2]
        if op.kind == "maxpool":
            by_hand += 3 * math.prod(op.shape)
    assert report.bootstraps == by_hand
    assert report.lookup_seconds == pytest.approx(by_hand)
    assert report.gate_seconds == pytest.approx(report.gates("csa"))
    assert report.failure_per_bootstrap == pytest.approx(2**-17 / by_hand)


def test_weights_and_adds_of_a_padded_layer_by_brute_force():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2)).eval()
    report = she.cost(net, (2, 7, 7), accumulators=("csa",))
    mask = (torch.ones(1, 2, 7, 7), (net[0].weight != 0).float())
    total = int(nn.functional.conv2d(*mask, stride=2, padding=1).sum())
    quantised = she.log_quantize(net[0].weight, 4).q
    zeros = int((quantised == 0).sum())
    layer = report.layers[0]
    assert layer.weights == pytest.approx(total - zeros * total / (3 * 18), rel=0.02)
    assert layer.adds == layer.weights - layer.units


def test_any_network_gets_a_report_and_says_what_is_not_possible():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    ).eval()
    report = she.cost(net, (3, 12, 12))
    assert [layer.kind for layer in report.unpriced] == ["GroupNorm", "GELU"]
    assert all(layer.reason for layer in report.unpriced)
    assert report.bootstraps > 0
    assert "2 operations cannot be evaluated" in " ".join(report.notes)


def test_wide_lookups_are_noted():
    net, x = made("residual")
    report = she.cost(she.quantize(net, x, bits=5, act_bits=8), accumulators=("csa",))
    assert any("refuses" in note for note in report.notes)


def test_leveled_note_names_the_first_illegal_gate():
    report = she.cost(unpadded()[0], (1, 8, 8))
    assert report.leveled is not None
    assert report.leveled.layer == "0"
    assert report.leveled.gate is not None


def test_report_shows_itself(tmp_path):
    net, _ = unpadded()
    report = she.cost(net, (1, 8, 8), label="small")
    text = str(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "leveled" in text
    assert "small" in report.to_html(tmp_path / "r.html").read_text()
    assert json.loads(report.to_json(tmp_path / "r.json").read_text())["layers"][0]["name"] == "0"


def test_refusals():
    net, _ = unpadded()
    with pytest.raises(she.QuantizationError, match="in_shape"):
        she.cost(net)
    with pytest.raises(she.QuantizationError, match="accumulator"):
        she.cost(net, (1, 8, 8), accumulators=("carry",))
    with pytest.raises(she.EngineError, match="did you mean"):
        she.cost(net, (1, 8, 8), gate="tfhe")


def test_timings_read_and_extend():
    t = Timing("t", "test", lookup=((3, 1.0), (5, 2.0)), bit=((8, 1.0),))
    assert t.lookup_seconds(4) == 2.0
    assert t.lookup_seconds(7) == pytest.approx(2.0 * 2.3**2)
    assert Timing("none", "test").lookup_seconds(3) is None
    assert all(p.source for p in PRESETS.values())
    assert "not achievable" in timings.timing("paper-leveled").source


def test_no_time_is_no_number():
    report = she.cost(unpadded()[0], (1, 8, 8), gate=Timing("none", "x"), lookup=Timing("none", "x"))
    assert report.gate_seconds is None
    assert report.lookup_seconds is None


@pytest.mark.slow
def test_resnet18_for_cifar_is_priced_within_ten_cpu_seconds():
    from methods.encrypted.resnet18 import resnet18

    net = resnet18().eval()
    start = time.process_time()
    report = she.cost(net, (3, 32, 32))
    assert time.process_time() - start < 10
    relu_units = sum(layer.units for layer in report.layers if layer.kind == "requant")
    assert relu_units == 557_056
    dense = sum(layer.weights for layer in report.layers if layer.kind == "conv")
    assert 0.8 * 555e6 < dense < 555.5e6
