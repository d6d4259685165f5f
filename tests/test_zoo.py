"""Networks that no one here wrote: diagnosed without error, and what trains in the world is not called broken."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import layerscope

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
