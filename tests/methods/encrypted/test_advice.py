"""Advice: prices in order, an accuracy budget on data that nothing was chosen on, and an honest no."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch
from torch import nn

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.costs import advice
from layerscope.methods.encrypted.costs.records import Advice, Advised
from methods.encrypted.example_nets import made


def small(samples: int = 120) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A net that sorts two kinds of images, and nothing else to learn."""
    torch.manual_seed(0)
    net, x = made("residual", samples=samples)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def test_without_data_it_lists_prices_and_promises_nothing():
    net, _, _ = small()
    found = she.advise(net, (1, 10, 10), bits=(2, 3), act_bits=(2, 3), lookup_bits=(5,), channels=(1.0, 0.5))
    assert len(found.rows) == 8
    assert found.best is None
    assert "prices only" in found.reason
    prices = [row.bootstraps for row in found.rows]
    assert prices == sorted(prices)
    assert all(row.accuracy is None and row.factor < 1 for row in found.rows)
    assert all(bool(row.widths) == (row.channels < 1) for row in found.rows)
    half = next(r for r in found.rows if r.channels == 0.5 and r.bits == 3 and r.act_bits == 3)
    whole = next(r for r in found.rows if r.channels == 1.0 and r.bits == 3 and r.act_bits == 3)
    assert half.bootstraps < 0.65 * whole.bootstraps
    assert half.gates < whole.gates


def test_only_what_is_cheaper_than_the_present_settings_is_listed():
    net, _, _ = small()
    found = she.advise(net, (1, 10, 10), base=(2, 2, 5), bits=(2, 3), act_bits=(2,), lookup_bits=(5,), channels=(1.0,))
    assert found.rows == ()
    assert "none is cheaper" in str(found)


def test_a_wide_budget_takes_the_cheapest_and_a_hopeless_one_takes_nothing(tmp_path):
    net, x, y = small()
    data = {"calib": x, "valid": (x, y), "bits": (3,), "act_bits": (2, 3), "lookup_bits": (5,), "channels": (1.0, 0.6)}
    seen: list[Advice] = []
    found = she.advise(net, (1, 10, 10), most_loss=1.0, watch=seen.append, **data)
    assert found.best is not None
    assert found.best.bootstraps == min(r.bootstraps for r in found.rows if r.accuracy is not None)
    assert seen[0].accuracy is not None
    assert (found.base_accuracy, found.judged) != (None, 0)
    text = str(found)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "Take: bits=3" in text
    assert json.loads(found.to_json(tmp_path / "a.json").read_text())["best"]["bits"] == 3
    assert "points lost" in found.to_html(tmp_path / "a.html").read_text()
    nothing = she.advise(net, (1, 10, 10), most_loss=-1.0, **data)
    assert nothing.best is None
    assert nothing.reason.startswith("nothing cheaper within the budget")
    assert "the best of them loses" in nothing.reason
    assert "No recommendation" in str(nothing)


def test_the_accuracy_is_that_of_the_net_one_gets_oneself():
    """Not trained, so that the recipe in the row gives the same integers again."""
    net, x, y = small()
    found = she.advise(
        net, (1, 10, 10), calib=x, valid=(x, y), most_loss=1.0, bits=(3,), act_bits=(3,), lookup_bits=(6,),
        channels=(0.6,), seed=3,
    )  # fmt: skip
    row = found.best
    assert row is not None
    again = she.quantize(she.narrow(net, x, 0.6), x, bits=3, act_bits=3, lookup_bits=6)
    assert she.cost(again, accumulators=("csa",)).bootstraps == row.bootstraps
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3)).tensor_split(2)[1]
    hits = again(x[order]).argmax(1) == y[order]
    assert row.accuracy == pytest.approx(float(hits.double().mean()))
    assert row.lost == pytest.approx(1 - row.accuracy)  # the labels are the float net's own
    miss = 1 - row.accuracy
    deviation = math.sqrt(miss * (1 - miss) * len(order) / (len(order) - 1))
    assert row.lost_at_most == pytest.approx(miss + 1.645 * deviation / math.sqrt(len(order)))


class Stub:
    """Accuracy by a rule, in place of training; counts what is measured."""

    halves = ((range(50), range(50)), (range(50), range(50)))

    def __init__(self, rule, second=None) -> None:
        self.rule, self.second, self.made = rule, second or rule, []

    def make(self, row: Advice) -> Advice:
        self.made.append(row)
        return row

    def price(self, row: Advice) -> Advice:
        return row

    def loss(self, row: Advice, half: int) -> tuple[float, float, float]:
        lost = (self.second if half else self.rule)(row)
        return 1 - lost, lost, lost


def grid() -> Advised:
    rows = []
    for c, b, a, k in product((1.0, 0.75, 0.5), (2, 3, 4), (2, 3, 4), (5, 6)):
        boots = round(1000 * c * (b + a + 0.3 * k))
        rows.append(Advice(b, a, k, c, boots, boots / 9800, boots, float(boots), k))
    rows = sorted((r for r in rows if r.bootstraps < 9800), key=lambda r: r.bootstraps)
    return Advised("stub", tuple(rows), 9800, (4, 4, 6), 0.02)


def searched(stub: Stub, monkeypatch, tries: int = 16) -> Advised:
    present = Advice(4, 4, 6, 1.0, 9800, 1.0, 9800, 9800.0, 6)
    monkeypatch.setattr(advice, "_row", lambda report, start, channels, lookup_bits: report)
    return advice._searched(grid(), stub, present, tries, lambda row: None)


@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_what_measuring_everything_finds(seed, monkeypatch):
    """For losses that only fall with more bits and channels, whatever their shape."""
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(4, generator=g) * 0.02

    def rule(row: Advice) -> float:
        missing = torch.tensor([4 - row.bits, 4 - row.act_bits, 6 - row.lookup_bits, 4 * (1 - row.channels)])
        return float((w * missing).sum())

    stub = Stub(rule)
    found = searched(stub, monkeypatch, tries=99)
    best = min((r for r in grid().rows if rule(r) <= 0.02), key=lambda r: r.bootstraps)
    assert found.best is not None
    assert found.best.bootstraps == best.bootstraps
    assert len(stub.made) - 1 <= 20  # of 53; one more is the present settings
    assert found.unmeasured == 0


def test_what_passed_by_luck_is_caught_on_the_second_half(monkeypatch):
    def real(row: Advice) -> float:
        return 0.1 if row.bootstraps < 5000 else 0.0

    found = searched(Stub(lambda row: 0.0, real), monkeypatch, tries=99)
    assert found.best is not None
    assert found.best.bootstraps == min(r.bootstraps for r in grid().rows if r.bootstraps >= 5000)
    assert found.judged > 1
    assert any(row.verdict == "loses too much on the second half" for row in found.rows)
    nothing = searched(Stub(lambda row: 0.0, lambda row: 0.1), monkeypatch)
    assert nothing.best is None
    assert "lost too much on the other" in nothing.reason


def test_tries_that_ran_out_are_said(monkeypatch):
    found = searched(Stub(lambda row: 1.0), monkeypatch, tries=2)
    assert found.best is None
    assert found.unmeasured > 0
    assert "raise tries" in str(found)


def test_bad_input_is_named():
    net, x, y = small()
    with pytest.raises(she.QuantizationError, match="calib"):
        she.advise(net, (1, 10, 10), valid=(x, y))
    with pytest.raises(she.QuantizationError, match="at least 20"):
        she.advise(net, (1, 10, 10), calib=x, valid=(x[:10], y[:10]))
    with pytest.raises(she.QuantizationError, match="at least 20"):
        she.advise(net, (1, 10, 10), calib=x, valid=(x, y[:-1]))
    with pytest.raises(she.QuantizationError, match="share of the lookups"):
        she.advise(net, (1, 10, 10), channels=(2.0,))
