"""A small MLP-Mixer: tokens exchange information through a two-layer network over positions instead of attention.

Source: Tolstikhin et al. 2021, arXiv 2105.01601.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from layerscope.nets.layers import Maker
from layerscope.nets.tokens import (
    ACTIVATIONS,
    FeedForward,
    ResidualAdd,
    TokenNet,
    branch_scale,
    count_tokens,
    hidden_activation,
    require_norm_without_activation,
)


class TokenMixing(FeedForward):
    """A feed-forward network over positions, the same for every channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class MixerBlock(nn.Module):
    """Mixing of tokens, then of channels, each a residual add of its own."""

    def __init__(self, tokens: ResidualAdd, channels: ResidualAdd) -> None:
        super().__init__()
        self.tokens = tokens
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        out: Tensor = self.channels(self.tokens(x))
        return out


class Mixer(TokenNet):
    """An MLP-Mixer."""


def mixer(
    make: Maker,
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    width: int,
    depth: int,
    patch: int,
    placement: str,
    branch: str,
    act: str,
) -> Mixer:
    """``depth`` blocks of ``width`` channels; hidden layers are normal with variance ``1/fan_in``.

    As in the paper the hidden layer over positions is half as wide as the tokens, the one over channels four times.

    Raises:
        SpecError: a norm that lives in an activation slot.
        SourceError: an image that the patches do not divide.
    """
    require_norm_without_activation("mixer", make, width)
    tokens = count_tokens("mixer", in_shape, patch)
    norm, base = partial(make.norm, width), ACTIVATIONS[act]
    embed = make.linear(in_shape[0] * patch**2, width, gain=1.0)
    narrow = max(1, width // 2)
    blocks: list[nn.Module] = []
    for _ in range(depth):
        over_tokens = TokenMixing(make, tokens, narrow, hidden_activation(make, narrow, base))
        over_channels = FeedForward(make, width, 4 * width, hidden_activation(make, 4 * width, base))
        blocks.append(
            MixerBlock(
                ResidualAdd(over_tokens, norm, placement, branch_scale(branch, width, depth)),
                ResidualAdd(over_channels, norm, placement, branch_scale(branch, width, depth)),
            )
        )
    final = norm() if placement != "post" else nn.Identity()
    return Mixer(embed, blocks, final, make.head(width, classes), patch)
