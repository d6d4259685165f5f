from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from layerscope.methods.focus import Effort, FocusedModel, FocusReport, focus, profile
from layerscope.methods.focus import relevance as relevances
from layerscope.methods.focus import search as searching
from layerscope.methods.focus.cost import CostTable, LevelCost
from layerscope.methods.focus.cuts import _break_even
from layerscope.methods.focus.engines import Engine
from layerscope.methods.focus.errors import FocusError, FocusTypeError
from layerscope.methods.focus.graph import trace
from layerscope.methods.focus.records import EngineTime
from layerscope.methods.focus.relevance import NAMES, evidence_of, make_relevance
from layerscope.methods.focus.samples import Samples, read, split
from layerscope.methods.focus.scoring import Scorer, mean_and_error
from layerscope.methods.focus.timing import speedup
from methods.focus.focus_nets import FAMILIES, build

SMALL = Effort(cuts=1, scored=6, timed=2, timing_images=4)


class Spot(nn.Module):
    """Says which half of the image holds a bright spot; dark positions cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3)))
        self.head = nn.Linear(8 * 32 * 32, 2, bias=False)
        for conv in (self.stem[0], *self.body):
            nn.init.dirac_(conv.weight)
        nn.init.zeros_(self.stem[0].bias)
        weight = torch.zeros(2, 8, 32, 32)
        weight[0, :, :, :16], weight[1, :, :, 16:] = 1, 1
        self.head.weight.data = weight.flatten(1)

    def forward(self, x):
        return self.head(torch.flatten(self.body(self.stem(x)), 1))


def spots(n: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 32, 32, generator=g) * 0.01
    place = torch.randint(0, 32, (n, 2), generator=g)
    x[torch.arange(n), 0, place[:, 0], place[:, 1]] = 5.0
    return x, (place[:, 1] >= 16).long()


@pytest.fixture
def slow_dense(monkeypatch: pytest.MonkeyPatch):
    """A slow dense engine, and times that follow the active share: the decision is then about accuracy only."""

    def engines(model, example, compile_too=False):
        def run(x):
            with torch.no_grad():
                for _ in range(30):
                    y = model(x)
            return y

        return (Engine("eager", run),)

    def timed(runs, images):
        shares = []
        for x in images:
            runs["focused"](x)
            shares.append(float(torch.stack(runs["focused"].last_aoi).float().mean()))
        n = len(images)
        return {"focused": [0.1 + s for s in shares], "full": [1.1] * n, "eager": [30.0] * n, "best": [30.0] * n}

    table = CostTable((LevelCost((32, 32), -1, None, (0.0, 1.0), (0.0, 1.0)),), 0.1, 30.0)
    monkeypatch.setattr(searching, "all_engines", engines)
    monkeypatch.setattr(searching, "time_engines", lambda engines, x: (EngineTime("eager", 30.0),))
    monkeypatch.setattr(searching, "measure", lambda runner, dense, x: table)
    monkeypatch.setattr(searching, "interleaved", timed)


def test_it_finds_the_spot_and_says_how(slow_dense):
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x[:50], y[:50]), (x[50:], y[50:])], max_accuracy_drop=3.0, relevance="brightness", effort=SMALL)
    report = f.report
    assert isinstance(report, FocusReport)
    assert report.decision == "focused", report.reason
    chosen = report.chosen
    assert chosen is not None
    assert chosen.outcome == "chosen"
    assert chosen.active_share < 0.3
    assert chosen.confirm_bound is not None
    assert chosen.confirm_bound <= 3.0
    assert chosen.chance_drop is not None
    assert chosen.chance_drop > 20  # random positions miss the spot
    assert chosen.speedup_low is not None
    assert chosen.speedup_low > 1.05
    assert report.samples == (48, 48)
    assert len(report.pictures) == 8
    with torch.no_grad():
        assert (f(x).argmax(1) == y).float().mean() > 0.97
    assert json.loads(json.dumps(report.to_dict()))["decision"] == "focused"
    assert {m.config.relevance for m in report.maps} == {"brightness"}
    assert any(m.verdict == "beats chance" and m.margin > 20 for m in report.maps)
    assert all(m.margin == pytest.approx(m.chance_drop - m.drop) for m in report.maps)
    text = str(report)
    assert "brightness" in text
    assert "beats chance" in text
    assert "<svg" in report._repr_html_()


def test_what_the_search_returns_is_what_its_configuration_gives(slow_dense):
    """The search fits maps and fills once for a cut; a model built from the select half alone must be the same."""
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], max_accuracy_drop=3.0, relevance="novelty", fill="mean", effort=SMALL)
    assert f.config is not None
    chosen = split(Samples(x, y, None), 0)[0]
    again = FocusedModel(model, f.config, example=x[:1], calibration=chosen.batches(SMALL.batch))
    assert again.state_dict().keys() == f.state_dict().keys()
    for (name, ours), theirs in zip(again.named_buffers(), f.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():
        assert torch.equal(f(x), again(x))


def test_random_positions_do_not_beat_themselves(slow_dense):
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], max_accuracy_drop=1.0, relevance="random", shape="cells", effort=SMALL)
    assert f.report is not None
    assert {m.verdict for m in f.report.maps} == {"no better"}


def test_the_fitting_set_is_bounded_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(relevances, "FIT_ROWS", 500)
    model, (x, _) = Spot().eval(), spots(12)
    traced = trace(model, x)
    one, two = (relevances.fitting_set(traced, traced.cut("stem.1").node, x.split(4)) for _ in range(2))
    assert one[0].shape == (498, 8)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_the_same_seed_chooses_the_same_halves_and_another_seed_others():
    samples = Samples(torch.arange(40.0).reshape(40, 1, 1, 1), None, None)
    a, b = split(samples, 3)
    assert torch.equal(a.x, split(samples, 3)[0].x)
    assert not torch.equal(a.x, split(samples, 4)[0].x)
    assert set(a.x.flatten().tolist()) | set(b.x.flatten().tolist()) == set(range(40))


def test_groups_are_never_torn_apart():
    group = torch.arange(60) // 7
    a, b = split(Samples(torch.zeros(60, 1, 1, 1), None, group), 0)
    assert not set(a.group.tolist()) & set(b.group.tolist())
    assert len(a) + len(b) == 60
    assert min(len(a), len(b)) >= 7
    with pytest.raises(FocusError, match="one group"):
        split(Samples(torch.zeros(6, 1, 1, 1), None, torch.zeros(6)), 0)


def test_an_impossible_budget_returns_the_dense_network_with_the_reason(slow_dense):
    model = build("vgg")
    x = torch.randn(40, 3, 16, 16)
    never = lambda outputs, labels: (outputs.abs().sum(1) * 1e6 % 1.0 > 2).float()  # noqa: E731
    punish = lambda outputs, labels: torch.where((outputs - labels).abs().amax(1) < 1e-6, 1.0, 0.0)  # noqa: E731
    with torch.no_grad():
        labels = model(x)
    f = focus(model, [(x, labels)], metric=punish, max_accuracy_drop=0.0, relevance="norm", effort=SMALL)
    assert f.report is not None
    assert f.report.decision == "dense"
    assert "lost more than 0 points" in f.report.reason
    assert any(c.chance_drop is not None for c in f.report.candidates)
    assert f.backend == "dense"
    with torch.no_grad():
        assert torch.equal(f(x), model(x))
    assert never(labels, labels).sum() == 0


def test_gains_that_are_only_noise_are_rejected(slow_dense, monkeypatch):
    ratios = torch.distributions.Normal(1.04, 0.15).sample((30,))

    def timed(runs, images):
        return {"focused": [1.0] * 30, "full": [1.0] * 30, "eager": [1.0] * 30, "best": ratios.tolist()}

    monkeypatch.setattr(searching, "interleaved", timed)
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], max_accuracy_drop=50.0, relevance="brightness", effort=SMALL)
    assert f.report is not None
    assert f.report.decision == "dense"
    assert "no candidate within the budget is certainly 1.05 times as fast" in f.report.reason


def test_a_curve_that_is_not_monotone_is_searched_to_its_end(slow_dense, monkeypatch):
    """Accuracy dips in the middle and recovers when most is skipped, as measured on noisy canvases."""
    original = Scorer.drop

    def planted(self, config, place, half, maps):
        mask = searching.select(place.maps[config.relevance], config.threshold, grid=config.grid, shape=config.shape)
        share = float(mask.float().mean())
        original(self, config, place, half, maps)
        return (40.0 if 0.15 < share < 0.9 else 0.0), 0.0

    monkeypatch.setattr(Scorer, "drop", planted)
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], max_accuracy_drop=1.0, relevance="brightness", fill="zero", shape="cells", grid=1,
              effort=replace(SMALL, scored=19))  # fmt: skip
    assert f.report is not None
    assert f.report.decision == "focused"
    assert f.report.chosen is not None
    assert f.report.chosen.active_share <= 0.15


def test_what_holds_on_the_select_half_only_is_not_confirmed(slow_dense, monkeypatch):
    original = Scorer.drop

    def lucky(self, config, place, half, maps):
        return (0.0, 0.0) if half == "select" else (original(self, config, place, half, maps)[0] + 30.0, 1.0)

    monkeypatch.setattr(Scorer, "drop", lucky)
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], max_accuracy_drop=2.0, relevance="brightness", effort=SMALL)
    assert f.report is not None
    assert f.report.decision == "dense"
    assert "none was confirmed" in f.report.reason
    # the safest is the only one that is tried: the next would be a second throw of the dice
    assert [c.outcome for c in f.report.candidates].count("not confirmed") == 1


def test_confirming_goes_from_the_safest_to_the_boldest_and_ends_with_the_first_failure(slow_dense, monkeypatch):
    """A bolder set than the one that failed would pass here by luck, and must not be tried."""
    asked = []

    def planted(self, config, place, half, maps):
        mask = searching.select(place.maps[config.relevance], config.threshold, grid=config.grid, shape=config.shape)
        share = float(mask.float().mean())
        if half == "select":
            return 1.0 - share, 0.0
        asked.append(share)
        return (5.0 if 0.3 < share < 0.6 else 0.0), 0.1

    monkeypatch.setattr(Scorer, "drop", planted)
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], max_accuracy_drop=2.0, relevance="norm", fill="zero", shape="cells", grid=1,
              effort=replace(SMALL, scored=19, timed=19))  # fmt: skip
    assert f.report is not None
    assert f.report.decision == "focused"
    assert f.report.chosen is not None
    assert asked == sorted(asked, reverse=True)
    assert len(asked) > 2
    assert 0.3 < asked[-1] < 0.6
    assert f.report.chosen.active_share == pytest.approx(asked[-2], abs=0.02)
    assert asked[-2] >= 0.6
    outcomes = [c.outcome for c in f.report.candidates]
    assert (outcomes.count("chosen"), outcomes.count("not confirmed")) == (1, 1)
    assert outcomes.count("confirmed") == len(asked) - 2


@pytest.mark.parametrize("groups", [2, 5, 30])
def test_samples_of_one_group_count_as_one(groups):
    generator = torch.Generator().manual_seed(groups)
    values = torch.randn(groups, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(groups).mul(7).repeat_interleave(4)
    order = torch.randperm(4 * groups, generator=generator)
    mean, error = mean_and_error(values.flatten()[order], labels[order])
    assert mean == pytest.approx(float(values.mean()))
    assert error == pytest.approx(float(values.mean(1).std()) / groups**0.5)  # equal groups: that of the group means
    copies = values[:, :1].expand(-1, 4).flatten()  # nothing new in the copies
    assert mean_and_error(copies, labels)[1] == pytest.approx(float(values[:, 0].std()) / groups**0.5)
    mean, error = mean_and_error(values.flatten(), None)
    assert error == pytest.approx(float(values.std()) / (4 * groups) ** 0.5)
    assert mean_and_error(values[0], torch.zeros(4))[1] == float("inf")


def test_a_fast_dense_engine_makes_dense_the_answer(monkeypatch):
    monkeypatch.setattr(
        searching, "all_engines", lambda m, e: (Engine("eager", lambda x: m(x[:, :, :1, :1]) if 0 else 0),)
    )
    monkeypatch.setattr(searching, "time_engines", lambda engines, x: (EngineTime("eager", 1e-6),))
    model, (x, y) = Spot().eval(), spots()
    f = focus(model, [(x, y)], relevance="brightness", effort=SMALL)
    assert f.report is not None
    assert f.report.decision == "dense"
    assert "predicted slower than eager" in f.report.reason


def test_bad_arguments_name_themselves():
    model, (x, y) = Spot().eval(), spots(40)
    with pytest.raises(FocusError, match="calibration: it is empty"):
        focus(model, [])
    with pytest.raises(FocusError, match="needs labels"):
        focus(model, [x], metric="accuracy")
    with pytest.raises(FocusTypeError, match="calibration: expected batches"):
        focus(model, [(x, "y")])
    with pytest.raises(FocusError, match="max_accuracy_drop"):
        focus(model, [x], max_accuracy_drop=float("nan"))
    with pytest.raises(FocusError, match=r"unknown 'brightnes'.*brightness"):
        focus(model, [x], relevance="brightnes")
    with pytest.raises(FocusError, match="shape: expected"):
        focus(model, [x], shape="ring")
    with pytest.raises(FocusError, match="metric: expected"):
        focus(model, [(x, y)], metric="f1")
    with pytest.raises(FocusError, match="training mode"):
        focus(Spot(), [x])
    with pytest.raises(FocusError, match="has no top class"):
        focus(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval(), [x])
    with pytest.warns(RuntimeWarning, match="only 3 calibration samples"):
        read(x[:3], None)


def test_the_bootstrap_bound_of_equal_times_is_the_ratio():
    assert speedup([2.0] * 9, [1.0] * 9) == (2.0, 2.0)
    median, low = speedup([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert median == 2.0
    assert low == 1.0


def test_evidence_is_gradient_times_activation_and_the_fit_is_least_squares():
    from layerscope.methods.focus.graph import trace

    model, x = build("resnet"), torch.randn(2, 3, 32, 32)
    traced = trace(model, x)
    cut = traced.cut("pool")
    rows, seen = evidence_of(traced, cut.node, x)
    leaf = model.pool(model.stem(x)).detach().clone().requires_grad_()
    out = model.head(torch.flatten(nn.functional.adaptive_avg_pool2d(model.blocks(leaf * 1), 1), 1))
    (grad,) = torch.autograd.grad(out.amax(1).sum(), leaf)
    torch.testing.assert_close(seen, (grad * leaf).sum(1).abs().flatten())
    torch.testing.assert_close(rows, leaf.detach().movedim(1, -1).reshape(-1, 16))
    planted = rows @ torch.arange(16.0) + 3.0
    fitted = make_relevance("evidence", 16, rows, planted)(rows, (2, 8, 8)).flatten()
    assert float(torch.corrcoef(torch.stack([fitted, planted]))[0, 1]) > 0.99


def test_relevance_maps_are_what_they_say():
    rows = torch.rand(12, 5)
    grid = (1, 3, 4)
    torch.testing.assert_close(make_relevance("brightness", 5)(rows, grid).flatten(), rows.sum(1))
    torch.testing.assert_close(make_relevance("norm", 5)(rows, grid).flatten(), rows.square().sum(1))
    far = make_relevance("novelty", 5, rows)(rows, grid).flatten()
    want = ((rows - rows.mean(0)).square() / (rows.var(0) + 1e-6)).sum(1)
    torch.testing.assert_close(far, want, rtol=1e-4, atol=1e-4)
    random = make_relevance("random", 5)(rows.repeat(2, 1), (2, 3, 4))
    assert torch.equal(random[0], random[1])
    with pytest.raises(FocusError, match="fitted to calibration"):
        make_relevance("novelty", 5)
    assert len(NAMES) == len(set(NAMES))


def test_profile_lists_cuts_and_break_even(tmp_path):
    report = profile(build("resnet"), torch.randn(1, 3, 32, 32))
    assert "pool" in [c.name for c in report.cuts]
    pool = next(c for c in report.cuts if c.name == "pool")
    assert pool.brightness == "yes"
    assert pool.convolutions == 8
    assert 0 <= pool.region_share <= 1
    assert pool.break_even is None or 0 <= pool.break_even <= 1
    assert report.best_engine.ms == min(e.ms for e in report.engines if e.ms is not None)
    assert "pool" in str(report)
    assert "pool" in report.to_html(tmp_path / "p.html").read_text()


def test_break_even_interpolates():
    level = LevelCost((8, 8), -1, None, (0.0, 0.5, 1.0), (0.0, 2.0, 4.0))
    table = CostTable((level,), 1.0, 9.0)
    assert _break_even(table, 3.0) == pytest.approx(0.5)
    assert _break_even(table, 2.0) == pytest.approx(0.25)
    assert _break_even(table, 9.0) == 1.0
    assert _break_even(table, 0.5) == 0.0
    assert level.at(0.75) == pytest.approx(3.0)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_saved_models_come_back(tmp_path, name):
    from layerscope.methods.focus import FocusConfig

    model, x = build(name), torch.randn(2, 3, 32, 32)
    config = FocusConfig(FAMILIES[name][1], "novelty", 5.0, fill="mean")
    f = FocusedModel(model, config, example=x, calibration=[x])
    path = f.save(tmp_path / "f.pt")
    back = FocusedModel.load(path, build(name, 5))
    assert back.config == config
    assert torch.equal(back(x), f(x))
    (tmp_path / "junk").write_text("x")
    with pytest.raises(FocusError, match="not a saved focused model"):
        FocusedModel.load(tmp_path / "junk", model)
