from __future__ import annotations

import copy
import csv
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from layerscope import nets
from layerscope.errors import LayerscopeError
from layerscope.methods import medic
from layerscope.methods.medic import MedicError, attacks, baselines
from layerscope.methods.medic.baselines.attention import attention, stage_ends
from layerscope.methods.medic.comparing import chosen
from methods.medic.medic_nets import same, samples, tiny

SHORT = [
    baselines.Medic(epochs=1), baselines.UniformClone(epochs=1), baselines.Scratch(epochs=1),
    baselines.Distill(epochs=1), baselines.FineTune(epochs=1), baselines.FTSAM(epochs=1), baselines.FST(epochs=1),
    baselines.FinePrune(epochs=1), baselines.NAD(epochs=1, teacher_epochs=1), baselines.ANP(iterations=3),
    baselines.CLP(u=0.5),
]  # fmt: skip


@pytest.mark.parametrize("defence", SHORT, ids=lambda d: type(d).__name__)
def test_a_defence_gives_another_network_and_leaves_the_model(defence):
    model = tiny().train()
    generator = torch.get_rng_state()
    cleaned = defence(model, samples(), seed=1)
    assert same(model, tiny())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not cleaned.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in cleaned.modules())
    if not isinstance(defence, baselines.ANP):  # three iterations prune nothing
        assert not same(cleaned, model)
    assert same(defence(model, samples(), seed=1), cleaned)
    assert torch.isfinite(cleaned(samples()[0])).all()
    assert all(p.requires_grad for p in cleaned.parameters())


def test_scratch_is_cloning_without_the_teacher():
    a = baselines.Scratch(epochs=1)(tiny(), samples(), seed=4)
    b = medic.clone(tiny(), samples(), clone_weight=0, epochs=1, seed=4, progress=False).model
    assert same(a, b)


def test_fine_pruning_switches_half_the_features_off():
    cleaned = baselines.FinePrune(share=0.5, epochs=1)(tiny(), samples())
    assert int((cleaned[8].weight == 0).all(0).sum()) == 8


def test_clp_prunes_the_channel_that_stands_out():
    model = tiny()
    with torch.no_grad():
        model[3].weight[5] *= 50
    cleaned = baselines.CLP(u=3.0)(model, samples())
    assert (cleaned[4].weight == 0).nonzero().tolist() == [[5]]
    assert (cleaned[1].weight != 0).all()


@pytest.mark.parametrize(
    "defence", [baselines.CLP(u=0.0), baselines.ANP(iterations=30, eps=0.9, lr=1.0, threshold=0.9)]
)
def test_pruning_knows_the_norms_of_the_reference_nets(defence):
    net = nets.build("resnet:blocks=1,width=8,preact=true", "batch", in_shape=(1, 8, 8), classes=3, seed=0)
    cleaned = defence(net, samples())
    assert any((m.weight == 0).any() for name, m in cleaned.named_modules() if name.endswith("norm2"))


def bright(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose brightness is their class."""
    x, y = samples(n)
    return x + y.view(-1, 1, 1, 1), y


@pytest.mark.parametrize("defence", [baselines.CLP(), baselines.ANP(iterations=30, eps=0.9, lr=1.0)])
def test_pruning_stops_before_it_costs_more_than_it_may(defence):
    x, y = bright(60)
    model = baselines.FineTune(lr=0.1, epochs=20)(tiny(), (x, y))

    def accuracy(net: nn.Module) -> float:
        with torch.no_grad():
            return (net(x).argmax(1) == y).double().mean().item()

    assert accuracy(model) > 0.9
    cleaned = defence(model, (x, y))
    assert accuracy(cleaned) >= accuracy(model) - defence.tolerance - 1e-9
    hardest = replace(defence, tolerance=1.0)(model, (x, y))
    gains = [torch.cat([net[1].weight, net[4].weight]) for net in (model, cleaned, hardest)]
    off = [int((g == 0).sum()) for g in gains]
    assert off[0] == 0 < off[2]
    assert off[1] <= off[2]
    assert off[1] == off[2] or accuracy(hardest) < accuracy(model) - defence.tolerance


def test_the_channels_that_do_nothing_are_the_first_to_go():
    x, y = bright(60)
    model = baselines.FineTune(lr=0.1, epochs=20)(tiny(), (x, y))
    with torch.no_grad():
        model[3].weight[5] *= 1000  # stands out, and the classifier does not look
        model[8].weight[:, 5] = 0
    assert baselines.CLP()(model, (x, y))[4].weight[5] == 0


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_of_sam_are_those_of_the_weights_themselves(momentum):
    model, still = tiny(), {"lr": 0.0, "epochs": 2}
    model[1].momentum = model[4].momentum = momentum
    # with a rate of zero only buffers change
    assert same(baselines.FTSAM(rho=5.0, **still)(model, samples()), baselines.FineTune(**still)(model, samples()))


def test_fst_keeps_the_norm_of_the_classifier():
    cleaned = baselines.FST(epochs=2)(tiny(), samples())
    assert cleaned[8].weight.norm().item() == pytest.approx(tiny()[8].weight.norm().item(), rel=1e-5)


def test_sam_without_a_radius_is_fine_tuning_on_smoothed_labels():
    a = baselines.FTSAM(rho=0.0, smoothing=0.0, epochs=1)(tiny().double(), (samples()[0].double(), samples()[1]))
    b = baselines.FineTune(epochs=1)(tiny().double(), (samples()[0].double(), samples()[1]))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)


def test_anp_prunes_what_does_not_pay():
    cleaned = baselines.ANP(iterations=30, eps=0.9, lr=1.0, threshold=0.9)(tiny(), samples())
    assert (cleaned[1].weight == 0).any() or (cleaned[4].weight == 0).any()


def test_anp_survives_group_norm_on_maps_that_lie_channels_last():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(net, nn.Linear(16, 3)).to(memory_format=torch.channels_last)
    x, y = samples()
    cleaned = baselines.ANP(iterations=2)(model, (x.contiguous(memory_format=torch.channels_last), y))
    assert torch.isfinite(cleaned(x)).all()


def test_attention_by_hand_and_where():
    a = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])
    assert torch.allclose(attention(a), torch.tensor([[9.0, 4.0]]) / math.sqrt(97))
    assert [t.name for t in stage_ends(tiny().eval(), samples()[0])] == ["1", "4"]


def test_defences_that_cannot_work_say_so():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for defence, said in (
        (baselines.ANP(), "no norm"),
        (baselines.CLP(), "no convolution"),
        (baselines.NAD(epochs=1), "taps"),
    ):
        with pytest.raises(MedicError, match=said):
            defence(dense, samples())
    with pytest.raises(MedicError, match="no linear layer"):
        baselines.FST()(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), samples())


@pytest.fixture(scope="module")
def table():
    threats = {"badnet 3x3": medic.Threat(attacks.BadNet(), 0), "blend 0.2": (attacks.Blend(0.2), 1)}
    defences = {"one": lambda model, clean: tiny(3).eval(), "tuned": baselines.FineTune(epochs=1)}
    return medic.compare(defences, tiny(), samples(), samples(30), threats, seeds=(0, 1), floor=tiny(8))


def test_table_has_every_row_with_its_counts(table):
    assert [(e.defence, e.trigger) for e in table.entries] == [
        (d, t) for d in ("before", "floor", "one", "tuned") for t in ("badnet 3x3", "blend 0.2")
    ]
    direct = medic.evaluate(tiny(3), samples(30), attacks.BadNet(), 0)
    assert table.entries[4].scores == (direct, direct)
    assert table.entries[4].spread("asr") == (direct.asr, direct.asr)


def test_table_as_text_page_csv_and_json(table, tmp_path):
    text = str(table)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("badnet 3x3", "floor", "tuned", "not a certificate", "20 images"):
        assert word in " ".join(text.split())
    assert "<svg" in table.to_html(tmp_path / "t.html").read_text()
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(rows) == 2 * (1 + 1 + 2 + 2)
    assert table.to_csv(tmp_path / "t.csv").read_text() == table.csv()
    json.dumps(table.to_dict())


def judged(**scores: tuple[float, float]) -> medic.Table:
    """A table of one trigger from (ACC, ASR) of every row."""
    entries = (medic.Entry(n, "t", (medic.Scores(acc, asr, 0.0, 1, 1),), 0.0) for n, (acc, asr) in scores.items())
    return medic.Table("m", 1, (0,), tuple(entries), "")


def test_front():
    made = judged(before=(1, 0), a=(0.9, 0.1), b=(0.8, 0.2), c=(0.8, 0))
    assert [e.defence for e in made.front("t")] == ["c", "a"]


def test_the_table_says_in_words_what_was_removed(tmp_path):
    made = judged(before=(0.92, 0.99), floor=(0.9, 0.02), a=(0.88, 0.06), b=(0.91, 0.5), c=(0.9, 0.01))
    said = " ".join(str(made).split())
    assert "Down to the floor, within 5 points (points of accuracy lost): c (2.0), a (4.0). Not: b." in said
    assert "Nothing here brings" in str(judged(before=(0.92, 0.99), floor=(0.9, 0.02), a=(0.9, 0.9)))
    idle = judged(before=(0.92, 0.03), floor=(0.9, 0.02), a=(0.9, 0.03))
    assert "next to nothing" in str(idle)
    assert "next to nothing" in idle.to_html(tmp_path / "idle.html").read_text()


def test_report_as_text_and_page(tmp_path):
    report = medic.clone(tiny(), samples(), epochs=2, batch_size=8, progress=False).report
    assert "effective clone weight" in str(report)
    page = report.to_html(tmp_path / "r.html").read_text()
    assert "Taps" in page
    assert "how far the student" in page
    many = replace(report, taps=tuple(replace(report.taps[0], name=f"block.{i}.norm") for i in range(40)))
    assert "(the 12 of 40 that end farthest)" in many.to_html(tmp_path / "many.html").read_text()
    short = replace(report, cross_entropies=(1.0,))
    assert "How the clone learned" not in short.to_html(tmp_path / "one.html").read_text()


def test_a_comparison_says_how_far_it_is(monkeypatch):
    told = []
    monkeypatch.setattr("layerscope._bar.Bar.update", lambda bar, done, note="": told.append((done, note)))
    given = (tiny(), samples(), samples(), {"t": (attacks.BadNet(), 0)})
    defences = {"first": baselines.CLP(), "second": baselines.CLP(u=3.0)}
    medic.compare(defences, *given, floor=tiny(), seeds=(0, 1))
    assert told == [(0, "floor"), (1, "first"), (2, "first"), (3, "second"), (4, "second")]


def test_bad_comparisons():
    given = (tiny(), samples(), samples(), {"t": (attacks.BadNet(), 0)})
    with pytest.raises(MedicError, match="call the defence something else"):
        medic.compare({"floor": baselines.CLP()}, *given)
    with pytest.raises(MedicError, match="not the model"):
        medic.compare({"same": lambda model, clean: model}, *given, floor=tiny())
    with pytest.raises(MedicError, match="one trigger"):
        medic.compare({}, *given[:3], {})
    with pytest.raises(LayerscopeError, match="did you mean 'medic'"):
        chosen(["medik"], baselines.standard())
    assert len(chosen([], baselines.standard())) == 13


def test_a_defence_that_cannot_work_becomes_a_note():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    clean = samples(12)
    table = medic.compare(
        {"clp": baselines.CLP(), "copy": lambda model, data: copy.deepcopy(model)}, net, clean, clean,
        {"corner": (attacks.BadNet(), 0)}, floor=baselines.Scratch(epochs=1),
    )  # fmt: skip
    assert {e.defence for e in table.entries} == {"before", "floor", "copy"}
    assert "clp cannot be used here" in table.notes[0]
    assert "clp cannot be used here" in str(table)
    assert "from scratch" in table.floor


class Owner(nn.Module):
    """Owns a parameter that cannot be drawn anew."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.head((self.gain * self.conv(x)).relu().mean((2, 3)))


def test_fresh_networks_from_a_factory():
    clean = samples(12)
    quick = baselines.standard(batch_size=4, factory=Owner)
    for name in ("medic", "uniform clone", "scratch", "distill"):
        assert isinstance(replace(quick[name], epochs=1)(Owner(), clean), Owner)
    with pytest.raises(MedicError, match="pass factory="):
        baselines.Medic(epochs=1)(Owner(), clean)
    with pytest.raises(MedicError, match=r"no floor: .* pass floor="):
        medic.compare({"copy": lambda m, d: copy.deepcopy(m)}, Owner(), clean, clean, {"corner": (attacks.BadNet(), 0)})
