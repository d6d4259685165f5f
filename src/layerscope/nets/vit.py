"""A small vision transformer with the norm before, after or on both sides of each branch.

Placements: ``pre`` (Xiong et al. 2020, arXiv 2002.04745), ``post`` (Vaswani et al. 2017, arXiv 1706.03762), ``peri``
(arXiv 2502.02732; "sandwich" in arXiv 2105.13290). Branch scalings: ``depth`` (1/sqrt(depth): Noci et al. 2022,
arXiv 2206.03126), ``skipinit`` (ReZero, arXiv 2003.04887), ``layerscale`` (arXiv 2103.17239), ``deepnorm`` (arXiv
2203.00555). Without class token: the tokens are averaged, as the other networks here average their maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import SourceError, SpecError
from layerscope.nets.layers import Gain, Maker

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


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


class FeedForward(nn.Module):
    """``down(act(up(x)))`` on every token."""

    def __init__(self, make: Maker, width: int, hidden: int, act: nn.Module, *, gain: float) -> None:
        super().__init__()
        self.up = make.linear(width, hidden, gain=gain)
        self.act = act
        self.down = make.linear(hidden, width, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class LayerScale(nn.Module):
    """A learnable gain per channel of a residual branch, small at the start."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """``gain * x``, channels last."""
        return self.gain * x


class FixedScale(nn.Module):
    """A residual branch times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``factor * x``."""
        return self.factor * x

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.factor:g}"


class TransformerResidual(nn.Module):
    """One residual add: ``after(skip * x + scale(inner(branch(before(x)))))``.

    ``pre``: the norm is ``before``; ``post``: it is ``after``; ``peri``: there is one ``before`` and one ``inner``.
    """

    def __init__(
        self, branch: nn.Module, norm: Callable[[], nn.Module], placement: str, scale: nn.Module, skip: float
    ) -> None:
        super().__init__()
        self.before = norm() if placement in ("pre", "peri") else nn.Identity()
        self.branch = branch
        self.inner = norm() if placement == "peri" else nn.Identity()
        self.scale = scale
        self.skip = skip
        self.after = norm() if placement == "post" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        added = self.scale(self.inner(self.branch(self.before(x))))
        # Without DeepNorm the skip path is x itself, not a product that rounds it.
        out: Tensor = self.after((x if self.skip == 1 else self.skip * x) + added)
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward network, each a residual add of its own."""

    def __init__(self, attention: TransformerResidual, feed_forward: TransformerResidual) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C]."""
        out: Tensor = self.feed_forward(self.attention(x))
        return out


class ViT(nn.Module):
    """Patches -> tokens, a learned position per token, blocks, average over tokens, linear classifier."""

    def __init__(
        self, embed: nn.Module, position: Tensor, blocks: list[nn.Module], norm: nn.Module, head: nn.Module, patch: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = embed
        self.position = nn.Parameter(position)
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        tokens = self.norm(self.blocks(self.embed(patches) + self.position))
        out: Tensor = self.head(tokens.mean(1))
        return out


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
            activation slot, which a transformer's norm positions do not have.
        SourceError: an image that the patches do not divide.
    """
    if width % heads:
        raise SpecError(f"vit: {heads} heads do not divide width={width}")
    if branch == "deepnorm" and placement != "post":
        raise SpecError(f"vit: branch=deepnorm is defined for placement=post, not placement={placement}")
    if in_shape[1] % patch or in_shape[2] % patch:
        raise SourceError(
            f"vit: patch={patch} does not divide the {in_shape[1]} x {in_shape[2]} image; resize it or set patch"
        )
    recipe = make.recipe
    if recipe.owns_activation and not recipe.acts_on_weights and isinstance(recipe.norm(width), nn.Identity):
        raise SpecError(
            f"vit: {recipe.spec} is norm and activation in one; a transformer's norms have no activation after them. "
            "Use layer, rms, batch or another plain norm"
        )

    gain = (8 * depth) ** -0.5 if branch == "deepnorm" else 1.0
    skip = (2 * depth) ** 0.25 if branch == "deepnorm" else 1.0
    norm = partial(make.norm, width)
    tokens = (in_shape[1] // patch) * (in_shape[2] // patch)
    embed = make.linear(in_shape[0] * patch**2, width, gain=1.0)
    position = 0.02 * torch.randn(1, tokens, width, generator=make.generator)
    blocks: list[nn.Module] = []
    for _ in range(depth):
        attention = Attention(make, width, heads, qk_norm=qk_norm, gain=gain)
        # The scaled ReLU belongs to its weights; FRN's threshold belongs to FRN's own position and is not wanted here.
        base = ACTIVATIONS[act]
        hidden = make.activation(4 * width, base) if recipe.acts_on_weights else base()
        feed_forward = FeedForward(make, width, 4 * width, hidden, gain=gain)
        blocks.append(
            TransformerBlock(
                TransformerResidual(attention, norm, placement, _scale(branch, width, depth), skip),
                TransformerResidual(feed_forward, norm, placement, _scale(branch, width, depth), skip),
            )
        )
    final = norm() if placement != "post" else nn.Identity()
    return ViT(embed, position, blocks, final, make.head(width, classes), patch)


def _scale(branch: str, width: int, depth: int) -> nn.Module:
    if branch == "depth":
        return FixedScale(1 / math.sqrt(depth))
    if branch == "skipinit":
        return Gain()
    if branch == "layerscale":
        # Values of the paper: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond.
        return LayerScale(width, 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6)
    return nn.Identity()
