"""The normalized transformer (nGPT): hidden states and weights live on a sphere, and no norm layer stands anywhere.

With N(x) = x / |x|_2 a residual add becomes ``h <- N(h + alpha * (N(branch(h)) - h))``, a step along the sphere of a
learned length per channel. Every weight vector along the channels has length 1; learned gains restore what that takes
away: of queries and keys, of the hidden layer (times sqrt(width)), of the logits; attention logits are times
sqrt(head width). Positions are learned here as in our other transformers; the paper rotates queries and keys.

The paper brings the weights back to length 1 after every step. Here they are of length 1 inside the forward pass (a
parametrization), which is the same function of the direction of the weights and asks nothing of the training loop.

Source: Loshchilov, Hsieh, Sun, Ginsburg 2024, arXiv 2410.01131, sections 2.2 to 2.6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from layerscope.errors import SpecError
from layerscope.nets.layers import Maker
from layerscope.nets.tokens import FeedForward
from layerscope.norms.weights import UnitFilters

if TYPE_CHECKING:
    from layerscope.nets.transformer import Attention

#: Step along the sphere at the start, for networks of any depth up to twenty.
_STEP = 0.05


class LearnedGain(nn.Module):
    """A gain per channel that starts at ``value``, learned as a parameter of size ``1/sqrt(width)``.

    The parameter has the size of a unit vector's entries, so that one learning rate suits both (section 2.5).
    """

    def __init__(self, channels: int, value: float, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), width**-0.5))
        self.factor = value * width**0.5

    def forward(self, x: Tensor) -> Tensor:
        """``gain * x``, [..., C] -> [..., C]."""
        out: Tensor = (self.factor * self.weight) * x
        return out


class SphereAdd(nn.Module):
    """``N(h + alpha * (N(branch(h)) - h))`` with ``h = N(x)``: a learned step on the sphere to what the branch says.

    Args:
        branch: attention or feed-forward network.
        width: channels of a token.
        depth: blocks of the network; alpha starts at 0.05, and at 1/depth in networks of more than twenty blocks.
    """

    def __init__(self, branch: nn.Module, width: int, depth: int) -> None:
        super().__init__()
        self.branch = branch
        self.alpha = LearnedGain(width, min(_STEP, 1 / depth), width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, S, C] -> [N, S, C], each of length 1."""
        # The first add finds embeddings of any length; further on this changes nothing.
        h = F.normalize(x, dim=-1)
        towards = F.normalize(self.branch(h), dim=-1)
        return F.normalize(h + self.alpha(towards - h), dim=-1)


class UnitRows(nn.Module):
    """``gain * N(x)`` along the last axis: queries and keys of one head."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.gain = LearnedGain(channels, 1.0, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        out: Tensor = self.gain(F.normalize(x, dim=-1))
        return out


class ScaledActivation(nn.Module):
    """``act(sqrt(width) * gain * x)``: a unit weight times a unit state has entries of size 1/sqrt(width)."""

    def __init__(self, act: nn.Module, channels: int, width: int) -> None:
        super().__init__()
        self.act = act
        self.gain = nn.Parameter(torch.ones(channels))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        out: Tensor = self.act(self.scale * self.gain * x)
        return out


class SphereHead(nn.Module):
    """The classifier: ``gain * W N(x)`` with unit rows of W, a gain per class."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.linear = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
        self.linear.weight = head.weight
        _unit(self.linear, axis=0)
        self.gain = LearnedGain(head.out_features, 1.0, head.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., classes]."""
        out: Tensor = self.gain(self.linear(F.normalize(x, dim=-1)))
        return out


def put_attention(attention: Attention, head_width: int) -> None:
    """Queries and keys on the sphere, their logits times sqrt(head width), and unit weights, in place."""
    width = attention.heads * head_width
    attention.query_norm, attention.key_norm = UnitRows(width, head_width), UnitRows(width, head_width)
    attention.scale = math.sqrt(head_width)
    for layer in (attention.query, attention.key, attention.value):
        _unit(layer, axis=0)
    _unit(attention.out, axis=1)


def put_feed_forward(feed_forward: FeedForward, width: int) -> None:
    """Unit weights and the scaled activation between them, in place."""
    _unit(feed_forward.up, axis=0)
    _unit(feed_forward.down, axis=1)
    feed_forward.act = ScaledActivation(feed_forward.act, 4 * width, width)


def require_plain(name: str, make: Maker, branch: str, qk_norm: bool) -> None:
    """Refuse what the sphere leaves no room for.

    Raises:
        SpecError: a norm, a branch scaling, or query and key norms.
    """
    if make.recipe.spec.name != "none":
        raise SpecError(
            f"{name}: placement=sphere normalizes by itself and has no place for {make.recipe.spec}; use norm none"
        )
    if branch != "plain" or qk_norm:
        asked = f"branch={branch}" if branch != "plain" else "qk_norm=true"
        raise SpecError(
            f"{name}: placement=sphere has a branch scaling and query and key norms of its own; drop {asked}"
        )


def _unit(layer: nn.Module, axis: int) -> None:
    """The weight [out, in] as vectors of length 1: its rows (``axis`` 0) or its columns (``axis`` 1)."""
    assert isinstance(layer, nn.Linear)
    parametrize.register_parametrization(layer, "weight", UnitFilters(layer.weight, axis, eps=0.0, learn_gain=False))
