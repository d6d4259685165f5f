"""Copies: what torch's deep copy refuses or shares."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from layerscope.copying import duplicate, is_unfinished


def test_a_copy_computes_the_same_and_shares_nothing():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    x = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    before = net(x)
    made = duplicate(net, ValueError)
    assert torch.equal(made(x), before)
    with torch.no_grad():
        for t in (*made.parameters(), *made.buffers()):
            t.zero_()
    assert torch.equal(net(x), before)


def test_a_pruned_network_that_has_run_keeps_its_mask_and_its_training():
    net = nn.Sequential(nn.Linear(4, 3))
    prune.random_unstructured(net[0], "weight", 0.5)
    x = torch.ones(2, 4)
    before = net(x)
    made = duplicate(net, ValueError)
    assert torch.equal(made(x), before)
    made(x).sum().backward()
    assert made[0].weight_orig.grad is not None
    assert net[0].weight_orig.grad is None
    with torch.no_grad():
        made[0].weight_orig.add_(1)
    assert not torch.equal(made(x), before)  # the hook computes the weight anew


def test_what_cannot_be_copied_is_named():
    lazy = nn.Sequential(nn.LazyLinear(2))
    assert is_unfinished(lazy)
    with pytest.raises(ValueError, match="Sequential has lazy layers"):
        duplicate(lazy, ValueError)
    changed = nn.Linear(2, 2)
    changed.forward = lambda x: x
    with pytest.raises(ValueError, match="Linear has a forward that was replaced"):
        duplicate(changed, ValueError)
    stuck = nn.Linear(2, 2)
    stuck.stream = (n for n in ())
    with pytest.raises(ValueError, match=r"Linear cannot be copied \(TypeError"):
        duplicate(stuck, ValueError)
