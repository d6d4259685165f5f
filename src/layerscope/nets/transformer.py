"""Small transformers, on images (ViT) and on text (GPT), with the norm before, after or on both sides of each branch.

Placements: ``pre`` (Xiong et al. 2020, arXiv 2002.04745), ``post`` (Vaswani et al. 2017, arXiv 1706.03762), ``peri``
(arXiv 2502.02732; "sandwich" in arXiv 2105.13290), ``sphere`` (nGPT: :mod:`layerscope.nets.sphere`). Branch scalings:
``depth`` (1/sqrt(depth): Noci et al. 2022, arXiv 2206.03126), ``skipinit`` (ReZero, arXiv 2003.04887), ``layerscale``
(arXiv 2103.17239), ``deepnorm`` (arXiv 2203.00555). Without class token: the tokens of an image are averaged, as the
other networks here average their maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import SourceError, SpecError
from layerscope.nets import sphere
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
    """Multi-head self-attention with separate query, key and value layers, so that each one's gradient can be seen.

    Args:
        make: makes the layers.
        width: channels of a token.
        heads: how many the channels are shared out to.
        causal: a token sees itself and those before it.
        qk_norm: RMS norm of queries and keys in each head (Henry et al. 2020, arXiv 2010.04245).
        gain: ``fan_in`` times the variance of value and output weights.
    """

    def __init__(
        self, make: Maker, width: int, heads: int, *, causal: bool = False, qk_norm: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.scale: float | None = None
        self.query = make.linear(width, width, gain=1.0)
        self.key = make.linear(width, width, gain=1.0)
        self.value = make.linear(width, width, gain=gain)
        self.out = make.linear(width, width, gain=gain)
        self.query_norm: nn.Module = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.key_norm: nn.Module = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(
            self.query_norm(query), self.key_norm(key), value, is_causal=self.causal, scale=self.scale
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention and feed-forward network, each a residual add of its own."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        out: Tensor = self.feed_forward(self.attention(x))
        return out


class ViT(TokenNet):
    """A vision transformer."""


class GPT(nn.Module):
    """Characters (plus a learned position each), causal blocks, a linear classifier of the next one at every place."""

    def __init__(self, embed: nn.Module, position: Tensor, blocks: list[nn.Module], norm: nn.Module, head: nn.Module):
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(position)
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of tokens [N, S] -> logits [N, classes, S]: the classes stand where ``cross_entropy`` wants them."""
        tokens = self.embed(x) + self.position[:, : x.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(tokens)))
        return out.transpose(1, 2)


@dataclass(frozen=True)
class Trunk:
    """The blocks of a transformer: what ``vit`` and ``gpt`` have in common.

    Raises:
        SpecError: heads that do not divide the width, DeepNorm elsewhere than after the add, a norm that lives in an
            activation slot, or a norm, a branch scaling or query and key norms with ``sphere``, which has its own.
    """

    name: str
    width: int
    depth: int
    heads: int
    placement: str
    branch: str
    qk_norm: bool
    act: str
    causal: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SpecError(f"{self.name}: {self.heads} heads do not divide width={self.width}")
        if self.branch == "deepnorm" and self.placement != "post":
            raise SpecError(
                f"{self.name}: branch=deepnorm is defined for placement=post, not placement={self.placement}"
            )

    def blocks(self, make: Maker) -> list[nn.Module]:
        """``depth`` blocks; hidden layers are normal with variance ``1/fan_in``."""
        if self.placement == "sphere":
            sphere.require_plain(self.name, make, self.branch, self.qk_norm)
        else:
            require_norm_without_activation(self.name, make, self.width)
        return [TransformerBlock(*self._adds(make)) for _ in range(self.depth)]

    def final(self, make: Maker) -> nn.Module:
        """The norm before the classifier; after post-norm blocks and on the sphere there is none."""
        return nn.Identity() if self.placement in ("post", "sphere") else make.norm(self.width)

    def head(self, make: Maker, classes: int) -> nn.Module:
        """The classifier."""
        head = make.head(self.width, classes)
        return sphere.SphereHead(head) if self.placement == "sphere" else head

    def _adds(self, make: Maker) -> tuple[nn.Module, nn.Module]:
        width, deep = self.width, self.branch == "deepnorm"
        gain = (8 * self.depth) ** -0.5 if deep else 1.0
        skip = (2 * self.depth) ** 0.25 if deep else 1.0
        attention = Attention(make, width, self.heads, causal=self.causal, qk_norm=self.qk_norm, gain=gain)
        hidden = hidden_activation(make, 4 * width, ACTIVATIONS[self.act])
        feed_forward = FeedForward(make, width, 4 * width, hidden, gain=gain)
        if self.placement == "sphere":
            sphere.put_attention(attention, width // self.heads)
            sphere.put_feed_forward(feed_forward, width)
            return sphere.SphereAdd(attention, width, self.depth), sphere.SphereAdd(feed_forward, width, self.depth)
        norm = partial(make.norm, width)
        return (
            ResidualAdd(attention, norm, self.placement, branch_scale(self.branch, width, self.depth), skip),
            ResidualAdd(feed_forward, norm, self.placement, branch_scale(self.branch, width, self.depth), skip),
        )


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
    """A vision transformer of ``depth`` blocks of ``width`` channels.

    Raises:
        SpecError: see :class:`Trunk`.
        SourceError: an image that the patches do not divide.
    """
    trunk = Trunk("vit", width, depth, heads, placement, branch, qk_norm, act)
    tokens = count_tokens("vit", in_shape, patch)
    embed = make.linear(in_shape[0] * patch**2, width, gain=1.0)
    position = 0.02 * torch.randn(1, tokens, width, generator=make.generator)
    blocks = trunk.blocks(make)
    return ViT(embed, blocks, trunk.final(make), trunk.head(make, classes), patch, position)


def gpt(
    make: Maker,
    in_shape: tuple[int, ...],
    classes: int,
    *,
    width: int,
    depth: int,
    heads: int,
    placement: str,
    branch: str,
    qk_norm: bool,
    act: str,
) -> GPT:
    """A decoder-only language model over ``classes`` tokens, for samples of at most ``in_shape[0]`` of them.

    Raises:
        SpecError: see :class:`Trunk`.
        SourceError: samples that are not rows of tokens.
    """
    if len(in_shape) != 1:
        raise SourceError(
            f"gpt takes rows of tokens, such as data text, got samples of shape {in_shape}; vit is for images"
        )
    trunk = Trunk("gpt", width, depth, heads, placement, branch, qk_norm, act, causal=True)
    embed = nn.Embedding(classes, width, _weight=torch.randn(classes, width, generator=make.generator))
    position = 0.02 * torch.randn(1, in_shape[0], width, generator=make.generator)
    blocks = trunk.blocks(make)
    return GPT(embed, position, blocks, trunk.final(make), trunk.head(make, classes))
