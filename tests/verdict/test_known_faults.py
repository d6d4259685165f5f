"""Networks with one known fault: the verdict names the layer and the cause."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import layerscope
from layerscope import Verdict

X, Y = layerscope.batch("digits:size=16", 64)


def plain(depth: int = 8, norm: bool = False) -> nn.Sequential:
    """Layers 1, 4, 7, ... are linear; a norm or nothing and a ReLU follow each."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        linear = nn.Linear(64 if i else 256, 64)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LayerNorm(64) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def verdict(model: nn.Module, x: Tensor = X) -> Verdict:
    return layerscope.judge(layerscope.profile(model, (x, Y), batch_size=32))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda layer: layer.weight.mul_(10), "changes the second moment x"),
        (lambda layer: layer.weight.mul_(0.01), "changes the second moment x"),
        (lambda layer: layer.weight.zero_(), "vanishes"),
        (lambda layer: layer.weight[0, 0].fill_(torch.nan), "not finite"),
    ],
)
def test_one_broken_layer_in_the_middle_is_named(fault: Callable[[nn.Module], None], cause: str) -> None:
    assert verdict(plain()).label != "fails"
    model = plain()
    with torch.no_grad():
        fault(model[10])
    found = verdict(model)
    assert (found.label, found.where) == ("fails", "10"), found.reason
    assert cause in found.reason


def test_a_layer_whose_rectifier_is_dead_is_named_at_the_rectifier() -> None:
    model = plain()
    nn.init.constant_(model[10].bias, -100.0)
    assert (verdict(model).label, verdict(model).where) == ("fails", "12")


def test_a_norm_takes_the_scale_of_a_layer_back() -> None:
    model = plain(norm=True)
    with torch.no_grad():
        model[10].weight.mul_(100)
    assert verdict(model).label != "fails"


def test_layers_that_all_have_the_wrong_scale_explode_and_are_not_one_broken_layer() -> None:
    model = plain(12)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(10)
    assert "explode" in verdict(model).reason


def test_weights_of_zero_are_named_from_the_first_layer_on() -> None:
    model = plain()
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    assert verdict(model).where == "3"  # the first layer's output, where the signal is read


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_a_gradient_that_is_cut_off_is_named_and_a_frozen_part_is_not() -> None:
    model = plain()
    model[11] = Cut()
    found = verdict(model)
    assert (found.label, found.where) == ("fails", "10")
    assert "no gradient reaches 10" in found.reason.lower()
    assert "detach" in found.remedies[0]
    model[:12].requires_grad_(False)
    assert verdict(model).label != "fails"


def test_a_network_without_any_gradient_fails() -> None:
    class Never(nn.Sequential):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out

    assert verdict(Never(*plain())).label == "fails"


def test_sigmoid_layers_lose_the_gradient_and_small_tanh_layers_the_signal() -> None:
    sigmoid, tanh = plain(12), plain(30)
    for i in range(3, len(sigmoid) - 1, 3):
        sigmoid[i] = nn.Sigmoid()
    for i in range(3, len(tanh) - 1, 3):
        tanh[i] = nn.Tanh()
        with torch.no_grad():
            tanh[i - 2].weight.mul_(0.3)
    assert verdict(sigmoid).label == "very slow"
    assert "gradients vanish" in verdict(sigmoid).reason.lower()
    assert verdict(tanh).label == "fails"
    assert "vanishes" in verdict(tanh).reason


class TwoTowers(nn.Module):
    """Ends in a small vector in the middle of the pass: no growth with depth, whatever the order of execution says."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
        self.right = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.left(x) / 10 + self.right(x))
        return out


def test_towers_side_by_side_are_no_explosion() -> None:
    torch.manual_seed(0)
    assert verdict(TwoTowers()).label != "fails"


def test_four_blocks_of_a_transformer_do_not_explode() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Flatten())
    assert "explode" not in verdict(nn.Sequential(model, nn.Linear(256, 10))).reason


@pytest.mark.parametrize(
    ("x", "remark"),
    [(X[:1].expand_as(X), "all samples are the same"), (X + 100, "the samples lie at 99.* centre them")],
)
def test_data_that_tell_nothing_apart_are_said_to_be_the_cause(x: Tensor, remark: str) -> None:
    seen = layerscope.profile(plain(), (x, Y))
    assert any(remark.split(".*")[0] in w for w in seen.warnings), seen.warnings
    assert not layerscope.profile(plain(), (X, Y)).warnings


@pytest.mark.slow
def test_the_advice_to_centre_before_the_classifier_helps() -> None:
    """A 4-layer CNN with GroupNorm learns nothing in 60 steps at learning rate 0.1, and with the advice it does."""

    def network(centre: bool) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(32 if i else 1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU()]
        centred = [nn.BatchNorm1d(32)] if centre else []
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *centred, nn.Linear(32, 10))

    def accuracy(model: nn.Module) -> float:
        seen = layerscope.fit(model, "digits:size=16", steps=60, batch_size=32, lr=0.1, progress=False)
        return sum(seen.metrics["accuracy"][-10:]) / 10

    plain, centred = network(centre=False), network(centre=True)
    found = verdict(plain)
    assert found.label == "very slow"
    assert "between the pooling and the classifier" in found.remedies[0]
    assert verdict(centred).label == "healthy"
    assert accuracy(centred) > accuracy(plain) + 0.2
