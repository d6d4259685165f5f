"""Choices that are more than a norm module: an own activation, a normalized weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerscope import norms
from layerscope.surgery import count_activations, plan_swap
from layerscope.surgery.wrappers import Keep


class Block(nn.Module):
    """A post-activation residual block."""

    def __init__(self, shared: bool = False, functional: bool = False, inplace: bool = False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.act1 = nn.ReLU(inplace=inplace)
        self.act2 = self.act1 if shared else nn.ReLU(inplace=inplace)
        self.functional = functional

    def forward(self, x):
        h = self.norm1(self.conv1(x))
        h = F.relu(h) if self.functional else self.act1(h)
        y = self.norm2(self.conv2(h))
        y += x
        return self.act2(y)


class PreBlock(nn.Module):
    """A pre-activation residual block with in-place activations."""

    def __init__(self):
        super().__init__()
        self.norm1, self.act1, self.conv1 = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
        self.norm2, self.act2, self.conv2 = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        h = self.conv1(self.act1(self.norm1(x)))
        return x + self.conv2(self.act2(self.norm2(h)))


X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def block(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 1), Block(**options))


def test_own_activation_replaces_the_one_behind_the_norm_and_the_one_behind_the_addition():
    net = block()
    plan = plan_swap(net, "frn", example=X)
    assert "ReLU '1.act1' becomes ThresholdedLinearUnit" in plan.sites[0].note
    assert "ReLU '1.act2' becomes ThresholdedLinearUnit" in plan.sites[1].note
    old = net[1].act1
    with plan.apply():
        assert type(net[1].act1).__name__ == type(net[1].act2).__name__ == "ThresholdedLinearUnit"
        assert count_activations(net) == 2
        net(X).sum().backward()
    assert net[1].act1 is old


def test_evonorm_stands_in_the_activation_slot_after_the_addition():
    net = block()
    plan_swap(net, "evonorm-s0:groups=2", example=X).apply()
    b = net[1]
    assert isinstance(b.norm1, nn.Identity)
    assert type(b.act2).__name__ == "EvoNormS0"
    h = b.conv1(net[0](X))
    h = b.act1(h)
    torch.testing.assert_close(net(X), b.act2(b.conv2(h) + net[0](X)))


def test_an_activation_that_is_shared_or_a_function_is_refused():
    assert "one module called 2 times" in plan_swap(block(shared=True), "frn", example=X).sites[0].refused
    sites = plan_swap(block(functional=True), "frn", example=X).sites
    assert "its activation is a function, relu() in '1'" in sites[0].refused
    assert sites[1].status == "swap"


def test_without_an_example_only_a_plain_sequential_is_sure():
    assert "pass example=" in plan_swap(block(), "weight").sites[0].refused
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    plan_swap(net, "weight").apply()
    assert isinstance(net[1], Keep)
    assert type(net[3]).__name__ == "StandardizedActivation"
    assert hasattr(net[0], "parametrizations")
    assert not hasattr(net[4], "parametrizations")


def test_evonorm_without_an_activation_to_replace_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    assert "no activation follows it" in plan_swap(net, "evonorm-b0").sites[0].refused
    site = plan_swap(net, "frn").sites[0]
    assert (site.status, site.note) == ("swap", "no activation follows")


def test_a_normalized_weight_equals_the_recipe_built_by_hand_and_undo_restores_the_layer():
    net = block()
    by_hand = copy.deepcopy(net)
    recipe = norms.recipe("sws")
    for conv in (by_hand[1].conv1, by_hand[1].conv2):
        conv.bias = nn.Parameter(torch.zeros(4))
        recipe.weight(conv)
    by_hand[1].norm1 = by_hand[1].norm2 = nn.Identity()
    conv, weight = net[1].conv1, net[1].conv1.weight.detach().clone()
    applied = plan_swap(net, "sws", example=X).apply()
    assert torch.equal(net(X), by_hand(X))
    assert net[1].conv1.bias is not None
    applied.undo()
    assert net[1].conv1 is conv
    assert torch.equal(conv.weight, weight)
    assert conv.bias is None


def test_the_shift_of_the_norm_becomes_the_bias():
    net = block()
    nn.init.constant_(net[1].norm1.bias, 0.25)
    applied = plan_swap(net, "sws", example=X).apply()
    assert torch.equal(net[1].conv1.bias, torch.full((4,), 0.25))
    assert "are dropped" in applied.plan.sites[0].note


def test_in_pre_activation_blocks_the_layers_that_make_the_sum_are_normalized():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), PreBlock(), PreBlock())
    plan = plan_swap(net, "sws", example=X)
    assert len(plan.swapped) == 4
    assert "the 2 layers that make up its input" in plan.sites[2].note  # stem and first block
    applied = plan.apply()
    # all but the last convolution, which no norm reads
    assert [hasattr(m, "parametrizations") for m in net.modules() if isinstance(m, nn.Conv2d)] == [True] * 4 + [False]
    applied.undo()


def test_taking_a_norm_away_does_not_let_an_in_place_activation_overwrite_the_skip_path():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), PreBlock())
    plan_swap(net, "none", example=X).apply()
    assert isinstance(net[1].norm1, Keep)
    assert isinstance(net[1].norm2, nn.Identity)  # nobody else reads what the first convolution makes
    b, x = net[1], net[0](X)
    want = x + b.conv2(F.relu(b.conv1(F.relu(x))))
    torch.testing.assert_close(net(X), want)


def test_a_norm_of_the_networks_own_input():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    assert "reads the network's own input" in plan_swap(net, "sws", example=X).sites[0].refused
    plan_swap(net, "none", example=X).apply()
    x = X.clone()
    net(x)
    assert torch.equal(x, X)


def test_reparametrized_and_repeated_layers_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x)))

    assert "'conv', is called more than once" in plan_swap(Twice(), "weight", example=X).sites[0].refused
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))
    assert "reparametrized already" in plan_swap(net, "weight", example=X).sites[0].refused


def test_a_norm_that_the_example_does_not_execute():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return x * 2

    assert plan_swap(Unused(), "layer", example=X).swapped
    assert "does not execute it" in plan_swap(Unused(), "weight", example=X).sites[0].refused


def test_functional_norms_are_mentioned():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return F.layer_norm(self.norm(x), (5,))

    (note,) = plan_swap(nn.Sequential(Functional()), "layer", example=X).notes
    assert note == "1 module(s) call a norm as a function, which cannot be exchanged: 0"


def test_examples_may_be_tuples_and_dicts():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x, scale):
            return {"out": self.norm(self.conv(x * scale))}

    assert plan_swap(Two(), "weight", example=(X, 2.0)).swapped
    assert plan_swap(Two(), "weight", example={"x": X, "scale": 2.0}).swapped


SEQUENCE = nn.Sequential(
    nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.BatchNorm1d(16), nn.SiLU()
)
VOLUME = nn.Sequential(
    nn.Conv3d(2, 16, 3), nn.BatchNorm3d(16), nn.ReLU(), nn.Conv3d(16, 16, 3), nn.InstanceNorm3d(16), nn.ReLU()
)
LAYER = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
ENCODER = nn.TransformerEncoder(LAYER, 2, nn.LayerNorm(16), enable_nested_tensor=False)


@pytest.mark.parametrize("spec", norms.names())
@pytest.mark.parametrize(
    ("net", "x"),
    [(SEQUENCE, torch.randn(4, 4, 16)), (VOLUME, torch.randn(2, 2, 8, 8, 8)), (ENCODER, torch.randn(4, 6, 16))],
    ids=["sequence", "volume", "encoder"],
)
def test_every_norm_runs_where_it_is_planned_in_training_and_in_evaluation(
    spec: str, net: nn.Module, x: torch.Tensor
) -> None:
    plan = plan_swap(net, norms.info(spec).example or spec, example=x)
    assert len(plan.sites) == 2 if net is not ENCODER else 5
    with plan.apply() as applied:
        for training in (True, False):
            out = applied.model.train(training)(x)
            assert torch.isfinite(out).all()
        out.square().mean().backward()


def test_a_norm_that_cannot_take_what_the_example_shows_is_refused() -> None:
    table = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    (site,) = plan_swap(table, "instance", example=torch.randn(1, 6)).sites
    assert site.refused is not None
    assert "needs positions" in site.refused
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16), nn.ReLU())
    (site,) = plan_swap(pooled, "instance", example=torch.randn(2, 16, 4, 4)).sites
    assert site.refused is not None
