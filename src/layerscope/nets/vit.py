"""A small vision transformer with the norm before, after or on both sides of each branch.

Placements: ``pre`` (Xiong et al. 2020, arXiv 2002.04745), ``post`` (Vaswani et al. 2017, arXiv 1706.03762), ``peri``
(arXiv 2502.02732; "sandwich" in arXiv 2105.13290). Branch scalings: ``depth`` (1/sqrt(depth): Noci et al. 2022,
arXiv 2206.03126), ``skipinit`` (ReZero, arXiv 2003.04887), ``layerscale`` (arXiv 2103.17239), ``deepnorm`` (arXiv
2203.00555). Without class token: the tokens are averaged, as the other networks here average their maps.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import SpecError
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


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key and value layers, so that each one's gradient can be seen."""

    def __init__(self, make: Maker, width: int, heads: int, *, qk_norm: bool, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = make.linear(width, width, gain=1.0)
        self.key = make.linear(width, width, gain=1.0)
        self.value = make.linear(width, width, gain=gain)
        self.out = make.linear(width, width, gain=gain)
        self.query_norm = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention and feed-forward network, each a residual add of its own."""

    def __init__(self, attention: ResidualAdd, feed_forward: ResidualAdd) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        out: Tensor = self.feed_forward(self.attention(x))
        return out


class ViT(TokenNet):
    """A vision transformer."""


def vit(
    make: Maker,
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    width: int,
    depth: int,
    heads: int,
    patch: int,
    placement: str,
    branch: str,
    qk_norm: bool,
    act: str,
) -> ViT:
    """``depth`` blocks of ``width`` channels; hidden layers are normal with variance ``1/fan_in``.

    Raises:
        SpecError: heads that do not divide the width, DeepNorm elsewhere than after the add, or a norm that lives in an
            activation slot.
        SourceError: an image that the patches do not divide.
    """
    if width % heads:
        raise SpecError(f"vit: {heads} heads do not divide width={width}")
    if branch == "deepnorm" and placement != "post":
        raise SpecError(f"vit: branch=deepnorm is defined for placement=post, not placement={placement}")
    require_norm_without_activation("vit", make, width)
    tokens = count_tokens("vit", in_shape, patch)

    gain = (8 * depth) ** -0.5 if branch == "deepnorm" else 1.0
    skip = (2 * depth) ** 0.25 if branch == "deepnorm" else 1.0
    norm = partial(make.norm, width)
    embed = make.linear(in_shape[0] * patch**2, width, gain=1.0)
    position = 0.02 * torch.randn(1, tokens, width, generator=make.generator)
    blocks: list[nn.Module] = []
    for _ in range(depth):
        attention = Attention(make, width, heads, qk_norm=qk_norm, gain=gain)
        hidden = hidden_activation(make, 4 * width, ACTIVATIONS[act])
        feed_forward = FeedForward(make, width, 4 * width, hidden, gain=gain)
        blocks.append(
            TransformerBlock(
                ResidualAdd(attention, norm, placement, branch_scale(branch, width, depth), skip),
                ResidualAdd(feed_forward, norm, placement, branch_scale(branch, width, depth), skip),
            )
        )
    final = norm() if placement != "post" else nn.Identity()
    return ViT(embed, blocks, final, make.head(width, classes), patch, position)
