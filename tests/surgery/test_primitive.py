"""The primitive: other modules in, the very same objects back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope.errors import SwapError
from layerscope.surgery import exchange


def test_replaces_and_restores_the_same_objects():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    before = list(net)
    swap = exchange(net, {"1": nn.Tanh(), "2": nn.Linear(3, 4)})
    assert isinstance(net[1], nn.Tanh)
    assert net(torch.zeros(1, 2)).shape == (1, 4)
    assert swap.pairs["1"] == (before[1], net[1])
    assert swap.undo() is net
    assert all(a is b for a, b in zip(net, before, strict=True))
    swap.undo()  # a second call does nothing


def test_undoes_at_the_end_of_a_block_also_after_an_exception():
    net = nn.Sequential(nn.ReLU())
    old = net[0]
    with pytest.raises(KeyError), exchange(net, {"0": nn.Tanh()}):
        raise KeyError
    assert net[0] is old


def test_a_shared_module_is_replaced_at_every_parent():
    shared = nn.ReLU()
    net = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.Linear(1, 1), shared), "c": shared})
    swap = exchange(net, {"b.1": nn.Tanh()})
    assert net["a"][0] is net["b"][1] is net["c"]
    assert isinstance(net["c"], nn.Tanh)
    swap.undo()
    assert net["a"][0] is net["b"][1] is net["c"] is shared


def test_two_replacements_for_one_shared_module_are_refused():
    shared = nn.ReLU()
    net = nn.Sequential(shared, shared)
    with pytest.raises(SwapError, match=r"'1' and '0' are one shared module"):
        exchange(net, {"0": nn.Tanh(), "1": nn.GELU()})
    assert net[0] is shared
    one = nn.Tanh()
    assert exchange(net, {"0": one, "1": one}).model[1] is one


def test_the_root_is_replaced_through_the_handle():
    net = nn.ReLU()
    swap = exchange(net, {"": nn.Tanh()})
    assert isinstance(swap.model, nn.Tanh)
    assert swap.undo() is net
    assert swap.model is net


def test_a_new_module_may_hold_the_old_one():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    old = net[0]
    swap = exchange(net, {"0": nn.Sequential(old, nn.Dropout())})
    assert net[0][0] is old
    swap.undo()
    assert net[0] is old


def test_undo_out_of_order_is_refused_and_in_order_works():
    net = nn.Sequential(nn.ReLU())
    old = net[0]
    first = exchange(net, {"0": nn.Tanh()})
    second = exchange(net, {"0": nn.GELU()})
    with pytest.raises(SwapError, match="undo the later exchanges first"):
        first.undo()
    second.undo()
    first.undo()
    assert net[0] is old


def test_nested_paths_are_refused():
    net = nn.Sequential(nn.Sequential(nn.ReLU()))
    with pytest.raises(SwapError, match=r"'0.0' lies inside '0'"):
        exchange(net, {"0": nn.Tanh(), "0.0": nn.Tanh()})


def test_an_unknown_path_names_the_nearest():
    net = nn.ModuleDict({"encoder": nn.ReLU()})
    with pytest.raises(SwapError, match=r"no module 'encodr'; did you mean 'encoder'\?"):
        exchange(net, {"encodr": nn.Tanh()})
    with pytest.raises(SwapError, match="is a str, not a module"):
        exchange(net, {"encoder": "tanh"})


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (torch.jit.script, "then script it"),
        (torch.compile, "then compile it again"),
        (nn.DataParallel, "model.module"),
    ],
)
def test_wrapped_networks_are_refused_with_the_remedy(wrap, remedy):
    with pytest.raises(SwapError, match=remedy):
        exchange(wrap(nn.Sequential(nn.ReLU())), {})
    with pytest.raises(SwapError, match=r"expected a torch\.nn\.Module, got str"):
        exchange("resnet18", {})
