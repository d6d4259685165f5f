"""An optimiser goes on with the new parameters, and comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from layerscope import norms
from layerscope.errors import SwapError
from layerscope.surgery import plan_swap


def net_and_optimizer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "weight_decay": 0.0}]
    return net, torch.optim.AdamW([*groups, {"params": net[4].parameters()}], lr=1e-2)


def step(net, optimizer, seed=0):
    optimizer.zero_grad()
    net(torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()


def test_heirs_take_the_group_and_a_copy_of_the_state():
    net, optimizer = net_and_optimizer()
    step(net, optimizer)
    old, old_state = net[1].weight, copy.deepcopy(optimizer.state[net[1].weight])
    applied = plan_swap(net, "layer").apply()
    applied.repoint(optimizer)
    new = net[1].weight
    assert optimizer.param_groups[1]["params"][0] is new
    assert torch.equal(optimizer.state[new]["exp_avg"], old_state["exp_avg"])
    assert old not in optimizer.state
    step(net, optimizer)
    assert not torch.equal(new, old)
    assert optimizer.state[new]["step"] == 2


def test_undo_restores_the_optimiser_to_the_bit():
    net, optimizer = net_and_optimizer()
    step(net, optimizer)
    before, params = copy.deepcopy(optimizer.state_dict()), [list(g["params"]) for g in optimizer.param_groups]
    applied = plan_swap(net, "frn").apply()
    applied.repoint(optimizer)
    step(net, optimizer)
    applied.undo()
    assert all(
        a is b
        for g, old in zip(optimizer.param_groups, params, strict=True)
        for a, b in zip(g["params"], old, strict=True)
    )
    # only what is not exchanged was trained on meanwhile
    after = optimizer.state_dict()["state"]
    for index in (1, 2):
        assert torch.equal(after[index]["exp_avg"], before["state"][index]["exp_avg"])
        assert after[index]["step"] == 1


def test_new_parameters_join_the_group_of_their_module():
    net, optimizer = net_and_optimizer()
    applied = plan_swap(net, "dyt").apply()
    applied.repoint(optimizer)
    assert any(p is net[1].alpha for p in optimizer.param_groups[1]["params"])


def test_parameters_without_a_successor_are_dropped():
    net, optimizer = net_and_optimizer()
    step(net, optimizer)
    plan_swap(net, "none").apply().repoint(optimizer)
    assert optimizer.param_groups[1]["params"] == []
    assert len(optimizer.state) == 3


def test_the_weight_of_a_normalized_layer_keeps_its_momentum():
    net, optimizer = net_and_optimizer()
    step(net, optimizer)
    average = optimizer.state[net[0].weight]["exp_avg"].clone()
    plan_swap(net, "weight").apply().repoint(optimizer)
    original = net[0].parametrizations.weight.original
    assert torch.equal(optimizer.state[original]["exp_avg"], average)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in net.parameters()}


def test_what_the_optimiser_does_not_train_stays_out_of_it():
    net, _ = net_and_optimizer()
    optimizer = torch.optim.SGD([*net[1].parameters()], lr=0.1)
    plan_swap(net, "weight").apply().repoint(optimizer)
    assert not any(p is net[0].parametrizations.weight.original for p in optimizer.param_groups[0]["params"])


def test_an_optimiser_of_another_network_is_refused():
    net, _ = net_and_optimizer()
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(SwapError, match="was it made for another network"):
        plan_swap(net, "layer").apply().repoint(other)


@pytest.mark.parametrize("spec", sorted(set(norms.names()) - {"none"}))
@pytest.mark.parametrize("affine", [True, False])
def test_every_new_parameter_is_trained_and_undo_forgets_them(spec: str, affine: bool) -> None:
    """Also those of an activation slot that held no parameter before (TLU, EvoNorm, Proxy Norm)."""
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32, affine=affine), nn.ReLU(), nn.Conv2d(32, 8, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    before = [id(p) for p in optimizer.param_groups[0]["params"]]
    generator = torch.get_rng_state()
    plan = plan_swap(
        net, norms.info(spec).example or spec, example=torch.randn(2, 3, 8, 8, generator=torch.Generator())
    )
    assert torch.equal(torch.get_rng_state(), generator)
    applied = plan.apply()
    if plan.swapped:
        applied.repoint(optimizer)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    applied.undo()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == before
