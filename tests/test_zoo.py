"""Networks that no one here wrote: diagnosed without error, and what trains in the world is not called broken."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import layerscope
from layerscope import sources
from layerscope.surgery import count_activations

# not importorskip: beside a CPU-only torch, timm can be imported only through layerscope's way around torchvision
pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra 'zoo')")

FAMILIES = [
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "regnetx_002",
    "densenet121",
    "convnext_atto",
    "convnextv2_atto",
    "ghostnet_100",
    "resnetv2_50",
    "repvgg_a0",
    "dm_nfnet_f0",
    "vit_tiny_patch16_224",
    "mixer_s32_224",
]
#: All of these are trained every day with a normal recipe at a normal batch size.
TRAINS = {"resnet18", "resnet50", "efficientnet_b0", "regnetx_002", "convnext_atto", "convnextv2_atto", "resnetv2_50",
          "vit_tiny_patch16_224", "mixer_s32_224", "dm_nfnet_f0"}  # fmt: skip


#: More families, each with blocks of its own kind; diagnosed and swapped only where slow tests are asked for.
MORE = [
    "botnet26t_256", "coatnet_pico_rw_224", "convmixer_768_32", "cs3darknet_s", "deit_tiny_patch16_224", "dla34",
    "dpn48b", "edgenext_xx_small", "efficientformerv2_s0", "efficientvit_b0", "fastvit_t8", "gernet_s",
    "ghostnetv2_100", "gmlp_ti16_224", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "lcnet_050",
    "levit_128s", "mambaout_femto", "maxvit_rmlp_pico_rw_256", "mobilenetv2_050", "mobilenetv4_conv_small",
    "mobileone_s0", "mobilevit_xxs", "nf_resnet26", "poolformer_s12", "pvt_v2_b0", "regnety_002", "repvit_m0_9",
    "res2net50_14w_8s", "resmlp_12_224", "resnest14d", "resnetv2_18", "rexnet_100", "selecsls42", "seresnet18",
    "skresnet18", "starnet_s1", "swin_tiny_patch4_window7_224", "tf_efficientnetv2_b0", "tinynet_e", "vgg11_bn",
    "visformer_tiny", "xcit_nano_12_p16_224",
]  # fmt: skip
#: Without any norm that could be exchanged.
NORM_FREE = {"resmlp_12_224", "nf_resnet26"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_family_is_diagnosed_swapped_run_and_restored_to_the_bit(name: str) -> None:
    x, y = layerscope.batch("digits:size=64,channels=3", 8)
    model = sources.build(f"timm:{name}", in_shape=(3, 64, 64), classes=10).module
    before = {key: value.clone() for key, value in model.state_dict().items()}
    activations = count_activations(model)
    verdict = layerscope.judge(layerscope.profile(model, (x, y)))
    assert verdict.label not in ("unknown", "fails"), verdict.reason
    plan = layerscope.plan_swap(model, "group:size=8", example=x[:2])
    assert bool(plan.swapped) != (name in NORM_FREE)
    assert not plan.refused
    with plan.apply():
        assert count_activations(model) == activations
        seen = layerscope.profile(model, (x, y))
        assert all(r.nonfinite_share == 0 for r in seen.records)
        assert not any("Batch" in r.kind for r in seen.of("norm"))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_diagnosed(name: str) -> None:
    result = layerscope.diagnose(f"timm:{name}", "digits:size=64,channels=3", batch_size=16, chunks=1)
    choice = result.choices[0]
    assert choice.profiles[0].records
    assert choice.verdict.label != "unknown"
    assert choice.verdict.reason
    assert all(a.text for a in choice.verdict.axes)
    if name in TRAINS:
        assert choice.verdict.label in ("healthy", "slow"), choice.verdict.reason


def test_compare_swaps_norms_in_a_network_from_a_zoo() -> None:
    norms = ["as is", "group:size=8", "layer2d"]
    result = layerscope.compare("timm:resnet18", norms, "digits:size=64,channels=3", batch_size=8, chunks=1)
    assert all(c.profiles for c in result.choices)
    kinds = {r.kind for r in result["group:size=8"].profiles[0].of("norm")}
    assert not any("Batch" in kind for kind in kinds), kinds
