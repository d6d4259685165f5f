"""Networks that nobody here wrote: planned, exchanged, run, undone to the bit, no activation lost."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from layerscope import sources
from layerscope.surgery import count_activations, plan_swap

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")

#: name -> norms that become group norm, norms that are refused
FAST = {
    "resnet18": (20, 0),
    "efficientnet_b0": (49, 0),
    "mobilenetv3_small_100": (34, 0),
    "regnetx_002": (44, 0),
    "densenet121": (121, 0),
    "convnext_atto": (17, 0),
    "convnextv2_atto": (17, 12),  # 12 global response norms, which gate and do not normalize
    "vit_tiny_patch16_224": (25, 0),
    "mixer_s32_224": (17, 0),
    "nf_resnet26": (0, 0),
    "ghostnet_050": (80, 0),
}
SLOW = {
    "resnet50": (53, 0),
    "resnetv2_50": (49, 0),
    "dm_nfnet_f0": (0, 0),
    "mobilevit_xxs": (53, 0),
    "repvgg_a0": (61, 0),
    "hrnet_w18_small": (91, 0),
    "poolformer_s12": (25, 0),
    "coat_lite_tiny": (21, 0),
    "edgenext_xx_small": (20, 0),
}
#: Fused norm+activation modules that an exchange by isinstance would have gutted.
FUSED = {"efficientnet_b0": 33, "mobilenetv3_small_100": 23, "regnetx_002": 27, "densenet121": 121, "ghostnet_050": 1}


def network(name):
    return sources.build(f"timm:{name}", in_shape=(3, 64, 64), classes=7).module


def check(name, spec, counts):
    model = network(name).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x)
    modules, activations = dict(model.named_modules()), count_activations(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}

    plan = plan_swap(model, spec, example=x)
    assert (len(plan.swapped), len(plan.refused)) == counts
    assert max(map(len, str(plan).splitlines())) <= 80
    applied = plan.apply()
    assert count_activations(model) == activations
    with torch.no_grad():
        swapped = model(x)
    assert torch.isfinite(swapped).all()

    applied.undo()
    now = dict(model.named_modules())
    assert now.keys() == modules.keys()
    assert all(now[path] is module for path, module in modules.items())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    with torch.no_grad():
        assert torch.equal(model(x), before)
    return plan


@pytest.mark.parametrize("name", FAST)
def test_to_group_norm_and_back(name):
    plan = check(name, "group:size=8", FAST[name])
    assert sum(" + " in (s.becomes or "") for s in plan.swapped) == FUSED.get(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_to_group_norm_and_back_more_families(name):
    check(name, "group:size=8", SLOW[name])


@pytest.mark.parametrize(
    ("name", "spec", "counts"),
    [
        ("resnet18", "weight", (20, 0)),
        ("resnet18", "evonorm-s0", (20, 0)),
        ("resnet18", "frn", (20, 0)),
        ("efficientnet_b0", "sws", (49, 0)),
        ("efficientnet_b0", "evonorm-b0", (33, 16)),  # linear bottlenecks have no activation for it to replace
        ("densenet121", "sws", (121, 0)),
        ("densenet121", "none", (121, 0)),
        ("vit_tiny_patch16_224", "rms", (25, 0)),
        ("vit_tiny_patch16_224", "layer", (0, 0)),  # is that already
    ],
)
def test_choices_that_are_more_than_a_module(name, spec, counts):
    check(name, spec, counts)


def test_the_swapped_network_trains():
    model = network("mobilenetv3_small_100").train()
    with plan_swap(model, "group:size=4").apply():
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert sum(p.grad is not None for p in model.parameters()) > 50


def test_weight_standardized_convolutions_are_mentioned():
    plan = plan_swap(network("nf_resnet26"), "layer")
    assert plan.notes[0] == "no norm module was found"
    assert "29 convolution(s) keep their own weight standardization (ScaledStdConv2d)" in plan.notes[1]


def test_a_frozen_batch_norm_of_torchvision():
    ops = sources.import_torchvision().ops
    net = torch.nn.Sequential(ops.FrozenBatchNorm2d(6))
    net[0].weight.fill_(3.0)
    plan_swap(net, "layer").apply()
    assert torch.equal(net[0].weight, torch.full((6,), 3.0))
    assert not net[0].weight.requires_grad


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_torchvision_networks(name):
    model = sources.build(f"torchvision:{name}", in_shape=(3, 32, 32)).module.eval()
    x = torch.randn(2, 3, 32, 32)
    activations = count_activations(model)
    with plan_swap(model, "group:size=4", example=x).apply() as applied:
        assert not applied.plan.refused
        assert count_activations(model) == activations
        model(x)
