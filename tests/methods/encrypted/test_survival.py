"""What an untrained net says of its training: statistics by construction, and the committed evidence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted import survival
from layerscope.methods.encrypted.distortion import BlockNet

ROWS = Path(__file__).parents[3] / "papers/she/results/survival.jsonl"


def fresh(depth: int, activation: str, seed: int = 0) -> tuple[BlockNet, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(120, 1, 8, 8) * torch.rand(120, 1, 1, 1).exp()
        return BlockNet(depth, activation, (1, 8, 8), 3), x, torch.randint(0, 3, (120,))


def test_contrast_by_construction():
    """20 % outliers far away on one axis: the rest keeps its own spread, the whole is theirs."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 5, generator=g).double()
    assert survival._contrast(features) == pytest.approx(0.0, abs=0.15)
    far = features.clone()
    far[:100, 0] += 1e4
    expected = math.log10(5**0.5 / (1e4 * math.sqrt(0.1 * 0.9)))
    assert survival._contrast(far) == pytest.approx(expected, abs=0.15)
    assert survival._contrast(torch.ones(10, 3).double()) == -30.0


def test_agreement_by_construction():
    same = torch.randn(1, 50).expand(4, 50)
    assert survival._agreement(same) == pytest.approx(1.0, abs=1e-6)
    assert survival._agreement(torch.eye(4)) == pytest.approx(0.0, abs=1e-6)
    assert survival._agreement(torch.zeros(3, 5).double()) == 0.0


def test_a_deep_square_is_lost_and_a_relu_is_safe_and_nothing_is_changed():
    net, x, y = fresh(8, "square")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = she.predict_survival(net, x, y, batch=40)
    assert found.survives is False
    assert "outliers" in found.reason
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    net, x, y = fresh(8, "relu")
    assert she.predict_survival(net, x, y, batch=40).survives is True
    assert str(she.predict_survival(net, x, y, batch=40)).startswith("will train: the contrast")


def test_contrast_falls_with_depth_for_a_square_and_not_for_a_relu():
    def contrast(depth: int, name: str) -> float:
        net, x, y = fresh(depth, name)
        return survival.initial(net, x, y, batch=40).contrast

    square = [contrast(d, "square") for d in (2, 4, 6)]
    relu = [contrast(d, "relu") for d in (2, 4, 6)]
    assert square[0] > square[1] > square[2]
    assert square[2] < -3
    assert min(relu) > -0.6


def test_bad_input_is_named():
    net, x, y = fresh(2, "relu")
    with pytest.raises(she.InputError, match="two batches"):
        she.predict_survival(net, x, y, batch=100)
    with pytest.raises(she.InputError, match="labels"):
        she.predict_survival(net, x, y[:50], batch=40)
    with pytest.raises(she.InputError, match="linear classifier"):
        she.predict_survival(nn.Conv2d(1, 1, 1), x, y, batch=40)


def test_the_thresholds_hold_on_seeds_they_were_not_chosen_on():
    """From the committed rows: who survived is read off a training, never off the statistic."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    fair = [r for r in rows if r["hardware"] != "CPU" and r["params"]["activation"] != "relu"]
    assert len(fair) == 42
    safe = [r["accuracy"] >= 0.7 for r in fair if r["init"]["contrast"] > survival.SAFE]
    lost = [r["accuracy"] >= 0.7 for r in fair if r["init"]["contrast"] < survival.LOST]
    assert sum(safe) >= 0.9 * len(safe)
    assert sum(lost) <= 0.1 * len(lost)
    assert len(safe) + len(lost) >= 0.9 * len(fair)


@pytest.mark.slow
def test_a_committed_row_can_be_measured_again():
    row = next(json.loads(line) for line in ROWS.read_text().splitlines())
    params = row["params"]
    again = survival.untrained(params["depth"], params["activation"], params["seed"])
    assert again.contrast == pytest.approx(row["init"]["contrast"], abs=0.01)
