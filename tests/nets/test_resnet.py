"""Residual networks: the paper's sizes, and a skip path that is the identity in every variant."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope import nets, norms
from layerscope.errors import SpecError
from layerscope.nets.resnet import PreActBlock, ResidualBlock

NORMS = tuple(norms.info(name).example or name for name in norms.names())
IDENTITY_NORMS = ("none", "weight", "sws")


def blocks(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, ResidualBlock | PreActBlock)]


def stream(net: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of every block, copied when they were made."""
    seen: list[list[torch.Tensor]] = []
    for block in blocks(net):
        block.register_forward_pre_hook(lambda m, i: seen.append([i[0].clone()]))
        block.register_forward_hook(lambda m, i, o: seen[-1].append(o.clone()))
    net(x)
    return [(a, b) for a, b in seen]


def test_resnet56_has_the_papers_size() -> None:
    net = nets.build("resnet56", "batch", classes=100)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 57
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(3.51e6, rel=2e-3)
    assert len(blocks(net)) == 27
    macs = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: macs.append(o[0, 0].numel() * m.weight.numel()))
    net.to("meta")(torch.empty(1, 3, 32, 32, device="meta"))
    assert sum(macs) == pytest.approx(0.511e9, rel=5e-3)


@pytest.mark.parametrize("depth", [20, 32, 56, 110])
@pytest.mark.parametrize("preact", ["false", "true"])
def test_depths_and_maps(depth: int, preact: str) -> None:
    net = nets.build(f"resnet{depth}:width=4,preact={preact}", "layer").to("meta")
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == depth + 1  # + 2 shortcuts - the linear layer
    shapes = []
    for block in blocks(net):
        block.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    net(torch.empty(2, 3, 32, 32, device="meta"))
    per_stage = (depth - 2) // 6
    assert shapes == [(4, 32, 32)] * per_stage + [(8, 16, 16)] * per_stage + [(16, 8, 8)] * per_stage


def test_names_are_readable() -> None:
    names = dict(nets.build("resnet56:width=2").named_modules())
    for name in ("stem.conv", "stages.0.blocks.3.conv1", "stages.1.blocks.0.shortcut.conv", "stages.2.blocks.8.act2"):
        assert name in names


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("preact", ["true", "false"])
def test_no_block_writes_into_its_input(norm: str, preact: str) -> None:
    net = nets.build(f"resnet20:width=8,preact={preact}", norm, in_shape=(3, 8, 8))
    for block in blocks(net):
        x = torch.randn(2, block.conv1.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        block(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("norm", NORMS)
def test_skipinit_makes_every_preactivation_block_the_exact_identity(norm: str) -> None:
    net = nets.build("resnet20:width=8,preact=true,skipinit=true", norm, in_shape=(3, 8, 8))
    passed = stream(net, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    same = [torch.equal(before, after) for before, after in passed if before.shape == after.shape]
    assert len(same) == 7
    assert all(same)


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "sws", "none"])
def test_skipinit_makes_a_postactivation_block_rectify_its_input_and_nothing_else(norm: str) -> None:
    net = nets.build("resnet20:width=8,skipinit=true", norm, in_shape=(3, 8, 8))
    for before, after in stream(net, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))):
        if before.shape == after.shape:
            assert torch.equal(after, before.relu())


def test_weight_norm_explodes_through_the_skip_path_unless_its_activation_is_on_the_branch() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    on_sum = stream(nets.build("resnet20:width=8,skipinit=true", "weight", in_shape=(3, 8, 8)), x)
    on_branch = stream(nets.build("resnet20:width=8,skipinit=true,branch_act=true", "weight", in_shape=(3, 8, 8)), x)
    growth = [float((b.square().mean() / a.square().mean()).detach()) for a, b in on_sum if a.shape == b.shape]
    # Once the stream is positive throughout, the scaled ReLU multiplies its second moment by 2 pi / (pi - 1).
    assert growth == sorted(growth)
    assert 2.7 < growth[-1] < 2 * math.pi / (math.pi - 1)
    assert all(torch.equal(a, b) for a, b in on_branch if a.shape == b.shape)


@pytest.mark.parametrize("norm", IDENTITY_NORMS)
def test_the_preactivation_skip_path_carries_x_and_not_relu_of_x(norm: str) -> None:
    """An in-place ReLU behind an identity norm would rectify the skip path; the sum tells."""
    net = nets.build("resnet20:width=8,preact=true", norm, in_shape=(3, 8, 8))
    block = blocks(net)[0]
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    branch = block.conv2(block.act2(block.norm2(block.conv1(block.act1(block.norm1(x.clone()))))))
    assert torch.equal(block(x), branch + x)


def test_evonorm_normalizes_after_the_addition() -> None:
    block = blocks(nets.build("resnet20:width=8", "evonorm-b0", in_shape=(3, 8, 8)))[0]
    assert isinstance(block.norm2, nn.Identity)
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    branch = block.conv2(block.act1(block.conv1(x)))
    assert torch.allclose(block(x), block.act2(branch + x))


def test_gain_starts_at_zero_and_learns() -> None:
    net = nets.build("resnet20:width=4,preact=true,skipinit=true", in_shape=(1, 8, 8))
    gains = [p for name, p in net.named_parameters() if name.endswith("gain.gain")]
    assert len(gains) == 9
    assert all(g.shape == () and g == 0 for g in gains)
    net(torch.randn(4, 1, 8, 8)).logsumexp(1).mean().backward()
    assert all(g.grad is not None and g.grad != 0 for g in gains)


def test_final_norm_and_stem_stride() -> None:
    net = nets.build("resnet20:width=4,preact=true,final_norm=true,stem_stride=2", "layer", in_shape=(1, 16, 16))
    shapes = []
    net.stem.register_forward_hook(lambda m, i, o: shapes.append(o.shape[2:]))
    net.final.register_forward_hook(lambda m, i, o: shapes.append(bool(o.min() >= 0)))
    net(torch.randn(2, 1, 16, 16))
    assert shapes == [(8, 8), True]


@pytest.mark.parametrize("options", ["preact=true,branch_act=true", "final_norm=true"])
def test_combinations_that_mean_nothing_are_refused(options: str) -> None:
    with pytest.raises(SpecError, match=options.rsplit(",")[-1].split("=")[0]):
        nets.build(f"resnet20:width=4,{options}")
