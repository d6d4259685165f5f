"""The families people download, as their libraries build them (random weights): three cuts each, masked and whole."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from layerscope import sources
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.graph import trace
from layerscope.methods.focus.plan import make_plan, zero_fills
from layerscope.methods.focus.reference import masked_forward
from layerscope.methods.focus.runner import Runner
from methods.focus.focus_nets import make_mask

#: network -> convolutions that must run on rows after its first usable cut
NETWORKS = {
    "torchvision:mobilenet_v2": 45, "torchvision:mobilenet_v3_small": 30, "torchvision:efficientnet_b0": 40,
    "torchvision:regnet_y_400mf": 45, "torchvision:densenet121": 100, "torchvision:resnext50_32x4d": 45,
    "torchvision:squeezenet1_0": 20, "torchvision:shufflenet_v2_x1_0": 50, "torchvision:googlenet": 50,
    "torchvision:convnext_tiny": 35, "timm:ghostnet_100": 70, "timm:resnet18d": 18, "timm:res2net50_26w_4s": 70,
    "timm:cspresnet50": 45, "timm:tf_efficientnet_b0": 45, "timm:nf_resnet26": 20, "timm:seresnet18": 15,
    "timm:repvgg_a0": 35, "timm:rexnet_100": 40, "timm:dpn68": 60, "timm:mixnet_s": 80, "timm:xception41": 60,
    "timm:vovnet39a": 35, "timm:dla34": 30, "timm:mobilenetv4_conv_small": 40, "timm:hardcorenas_a": 25,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_families_run_on_rows(name):
    if find_spec(name.split(":")[0]) is None:
        pytest.skip(f"{name.split(':')[0]} is not installed")
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    net = sources.build(name, in_shape=(3, 96, 96), classes=10).module.eval()
    for module in net.modules():  # the default statistics hide errors
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    traced, chosen, seen = trace(net, x), make_backend(), []
    for cut in traced.cuts[:: max(1, len(traced.cuts) // 3)]:
        try:
            plan = make_plan(traced, cut, stem_on_rows=chosen.stem_on_rows)
        except FocusError:
            continue
        runner, fills = Runner(plan, chosen, zero_fills(plan)), zero_fills(plan)
        mask = make_mask("blob", 2, *cut.grid)
        close(runner.tail(runner.stem(x), mask), masked_forward(plan, fills, x, mask))
        with torch.no_grad():
            close(runner.tail(runner.stem(x), torch.ones_like(mask)), net(x))
        seen.append(plan.convolutions)
    assert seen[0] >= NETWORKS[name]


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) < 1e-5
