"""The two networks in transformer style without attention: wiring."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope import nets
from layerscope.errors import SourceError, SpecError
from layerscope.nets.convnext import ConvNeXtBlock, Downsample
from layerscope.nets.mixer import MixerBlock, TokenMixing

TOKENS = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0))


def test_token_mixing_is_the_same_for_every_channel() -> None:
    net = nets.build("mixer:width=8,depth=1,patch=2", "layer", in_shape=(1, 8, 8))
    mixing = next(m for m in net.modules() if isinstance(m, TokenMixing))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mixing(TOKENS)[..., order], mixing(TOKENS[..., order]))
    assert mixing.up.weight.shape == (4, 16)


def test_a_mixer_block_is_two_residual_adds() -> None:
    net = nets.build("mixer:width=8,depth=1,patch=2", "layer", in_shape=(1, 8, 8))
    block = next(m for m in net.modules() if isinstance(m, MixerBlock))
    mixed = TOKENS + block.tokens.branch(block.tokens.before(TOKENS))
    torch.testing.assert_close(block(TOKENS), mixed + block.channels.branch(block.channels.before(mixed)))


def test_a_convnext_block_is_what_its_formula_says() -> None:
    net = nets.build("convnext:width=8,blocks=1,layerscale=true", "layer2d", in_shape=(1, 16, 16))
    block = next(m for m in net.modules() if isinstance(m, ConvNeXtBlock))
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    hidden = nn.functional.gelu(block.up(block.norm(block.depthwise(x))))
    torch.testing.assert_close(block(x), x + 1e-6 * block.down(hidden))
    assert block.depthwise.weight.shape == (8, 1, 7, 7)


def test_convnext_stages() -> None:
    net = nets.build("convnext:width=8,blocks=2", "layer2d", in_shape=(3, 32, 32))
    shapes = []
    for module in net.modules():
        if isinstance(module, ConvNeXtBlock | Downsample):
            module.register_forward_hook(lambda m, i, o: shapes.append((type(m).__name__, *o.shape[1:])))
    net(torch.randn(2, 3, 32, 32))
    block, down = "ConvNeXtBlock", "Downsample"
    assert shapes == [
        (block, 8, 16, 16), (block, 8, 16, 16), (down, 16, 8, 8), (block, 16, 8, 8), (block, 16, 8, 8),
        (down, 32, 4, 4), (block, 32, 4, 4), (block, 32, 4, 4),
    ]  # fmt: skip


def test_the_response_norm_of_v2_is_the_identity_at_the_start() -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (
        nets.build(f"convnext:width=8,grn={grn}", "layer2d", in_shape=(1, 8, 8)) for grn in ("true", "false")
    )
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize("net", ["mixer", "convnext"])
def test_norms_with_an_activation_inside_are_refused(net: str) -> None:
    with pytest.raises(SpecError, match="norm and activation in one"):
        nets.build(net, "evonorm-s0")


def test_mixer_patches_must_divide_the_image() -> None:
    with pytest.raises(SourceError, match="patch=5"):
        nets.build("mixer:patch=5")
