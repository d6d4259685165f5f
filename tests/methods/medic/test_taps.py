from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import nets
from layerscope.methods import medic
from layerscope.methods.medic import MedicError, Tap, attacks, baselines, suggest_taps, tap_statistics
from layerscope.methods.medic.baselines.attention import attention, stage_ends
from layerscope.methods.medic.taps import tapped
from methods.medic.medic_nets import samples, tiny


class Shared(nn.Module):
    """One ReLU for two norms, and a shortcut added in place, as in many libraries' residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(first))
        out += first
        return self.fc(self.relu(out).mean((2, 3)))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(x)), inplace=True).mean((2, 3)))


def test_kinds_in_execution_order():
    model, (x, _) = tiny(), samples()
    norms = [Tap("1", "norm+act", "2"), Tap("4", "norm+act", "5")]
    convs = [Tap("0", "conv"), Tap("3", "conv")]
    assert suggest_taps(model, "norm", x) == norms
    assert suggest_taps(model, "conv", x) == convs
    assert suggest_taps(model, "conv+norm", x) == [convs[0], norms[0], convs[1], norms[1]]
    assert suggest_taps(model, "all", x) == suggest_taps(model, "conv+norm", x)  # the only dense layer is the logits
    assert suggest_taps(model, ["3"], x) == [convs[1]]
    assert suggest_taps(model, lambda m: ["8"], x) == [Tap("8", "dense")]


def test_reference_net_is_tapped_as_the_paper_does():
    net = nets.build("resnet:blocks=1,width=4", "batch", in_shape=(1, 8, 8), classes=3, seed=0)
    taps = {t.name: t for t in suggest_taps(net, "conv+norm", torch.zeros(2, 1, 8, 8))}
    assert taps["stem.norm"].kind == "norm+act"
    assert taps["stages.0.blocks.0.norm2"].kind == "norm"  # the sum comes before the activation
    assert "head" not in taps


def test_shared_activation_and_sum_in_place():
    torch.manual_seed(0)
    model, (x, _) = Shared(), samples(4)
    taps = suggest_taps(model, "norm", x)
    assert taps == [Tap("bn1", "norm+act", "relu"), Tap("bn2", "norm", overwritten=True)]
    model.eval()
    with torch.no_grad(), tapped(model, taps) as reading:
        model(x)
        before = model.bn1(model.conv1(x))
        assert torch.equal(reading.at["bn1"], before)
    with torch.no_grad(), tapped(model, taps) as reading:
        model(x)
    after = before.relu()
    assert torch.equal(reading.compared["bn1"], after)
    assert torch.equal(reading.at["bn2"], model.bn2(model.conv2(after)))


def test_functional_activation_leaves_the_norm_alone_and_unharmed():
    torch.manual_seed(0)
    model, (x, _) = Functional().eval(), samples(4)
    taps = suggest_taps(model, "norm", x)
    assert taps == [Tap("bn", "norm", overwritten=True)]
    with torch.no_grad(), tapped(model, taps) as reading:
        model(x)
    assert (reading.compared["bn"] < 0).any()


@pytest.mark.parametrize("size", [6, 24])
def test_statistics_are_the_pooled_ones(size):
    model, (x, _) = tiny().eval(), samples(24)
    taps = suggest_taps(model, "conv+norm", x)
    found = tap_statistics(model, x, taps, batch_size=size)
    with torch.no_grad():
        a = model[0](x)
    variance, mean = torch.var_mean(a, dim=(0, 2, 3), keepdim=True)
    assert torch.allclose(found["0"][0], mean, atol=1e-6)
    assert torch.allclose(found["0"][1], variance.sqrt(), atol=1e-6)
    # the released code averages the batches' variances: smaller by the spread of their means
    batches = torch.stack([torch.var(part, dim=(0, 2, 3)) for part in torch.split(a, 6)]).mean(0)
    assert (batches < variance.flatten() * (1 + 4 / (6 * 64))).all()


class Last(nn.Module):
    """Channels last: a map [B, H, W, C], then tokens [B, H W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.first, self.mid = nn.LayerNorm(6), nn.Linear(6, 6)
        self.norm, self.act, self.head = nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.mid(self.first(self.stem(x).movedim(1, -1))).flatten(1, 2)
        return self.head(self.act(self.norm(x)).mean(1))


def test_channels_may_come_last():
    torch.manual_seed(0)
    model, (x, y) = Last().eval(), samples(24)
    taps = suggest_taps(model, "all", x)
    assert [(t.name, t.channels_last) for t in taps] == [
        ("stem", False), ("first", True), ("mid", True), ("norm", True)
    ]  # fmt: skip
    found = tap_statistics(model, x, taps, batch_size=7)
    with torch.no_grad():
        a = model.first(model.stem(x).movedim(1, -1))
    variance, mean = torch.var_mean(a, dim=(0, 1, 2), keepdim=True)
    assert found["first"][0].shape == (1, 1, 1, 6)
    assert found["norm"][0].shape == (1, 1, 6)
    assert torch.allclose(found["first"][0], mean, atol=1e-6)
    assert torch.allclose(found["first"][1], variance.sqrt(), atol=1e-6)
    report = medic.clone(model, (x, y % 3), epochs=1, batch_size=8, taps="all", progress=False).report
    assert [tap.neurons for tap in report.taps] == [96, 96, 96, 96]
    ends = stage_ends(model, x)
    assert [tap.name for tap in ends] == ["first"]
    assert torch.allclose(attention(a, -1), attention(a.movedim(-1, 1)))


def test_model_is_as_before():
    model, (x, _) = tiny().train(), samples()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tap_statistics(model, x, suggest_taps(model, "conv+norm", x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model[2].inplace


def test_hooks_go_also_after_an_error():
    model, (x, _) = tiny(), samples()
    with pytest.raises(ZeroDivisionError), tapped(model, suggest_taps(model, "conv", x)):
        raise ZeroDivisionError
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model[2].inplace


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.conv(self.conv(x)).mean((1, 2)))[0])


def test_late_taps_are_the_last_half_of_the_activations_behind_norms():
    x, _ = samples()

    def late(net: nn.Module) -> list[str]:
        return [tap.name for tap in suggest_taps(net, "late", x)]

    net = nets.build("resnet:blocks=1,width=4", "batch", in_shape=(1, 8, 8), classes=3, seed=0)
    seen = [tap.name for tap in suggest_taps(net, "norm", x) if tap.kind == "norm+act"]
    assert late(net) == seen[len(seen) // 2 :]
    assert suggest_taps(tiny(), "late", x) == suggest_taps(tiny(), "conv+norm", x)[-1:]

    def convs(*between: Callable[[], nn.Module]) -> nn.Sequential:
        layers = [part for _ in range(6) for part in (nn.Conv2d(1, 1, 3, padding=1), *(make() for make in between))]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))

    assert late(convs(lambda: nn.BatchNorm2d(1), nn.Tanh)) == ["10", "13", "16"]
    assert late(convs(lambda: nn.BatchNorm2d(1))) == ["7", "9", "11"]  # norms without a visible activation
    assert late(convs()) == ["3", "4", "5"]  # no norm
    one = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    assert late(one) == ["1"]


def test_bad_taps():
    x, _ = samples()
    with pytest.raises(MedicError, match="no module 'conv9' to tap"):
        suggest_taps(tiny(), ["conv9"], x)
    with pytest.raises(MedicError, match="called 2 times"):
        suggest_taps(Twice(), ["conv"], x)
    with pytest.raises(MedicError, match="no tensor"):
        suggest_taps(Twice(), ["lstm"], x)
    with pytest.raises(MedicError, match="did you mean 'conv"):
        suggest_taps(tiny(), "convs", x)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(MedicError, match="use taps='all'"):
        suggest_taps(dense, "conv+norm", x)
    assert suggest_taps(dense, "all", x) == [Tap("1", "dense")]


class Reused(nn.Module):
    """One convolution three times over, and an output that is no bare tensor."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        for _ in range(3):
            x = torch.relu(self.again(x))
        return {"features": x, "logits": self.head(x.mean((2, 3)))}


def test_a_module_used_over_and_over_is_left_out_unless_named():
    x, y = samples(12)
    assert [t.name for t in suggest_taps(Reused(), "conv+norm", x[:2])] == ["stem", "norm"]
    cleaned = medic.clone(Reused(), (x, y), epochs=1, batch_size=4, progress=False)
    assert any("several times in one pass: again" in w for w in cleaned.report.warnings)
    with pytest.raises(MedicError, match="'again' is called 3 times"):
        medic.clone(Reused(), (x, y), taps=["again"], epochs=1, batch_size=4, progress=False)


@pytest.mark.parametrize("name", ["distill", "fine-tune lr=0.01", "ft-sam", "fst", "anp", "fine-prune"])
def test_outputs_with_logits_are_enough_for_every_defence(name):
    x, y = samples(12)
    defence = baselines.standard(batch_size=4)[name]
    short = replace(defence, **{"iterations" if name == "anp" else "epochs": 1})
    assert medic.evaluate(short(Reused(), (x, y)), (x, y), attacks.BadNet(), 0).n_clean == 12
