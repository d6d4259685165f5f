"""What networks on tokens and networks in their style share: residual adds with a norm on any side, and patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.errors import SourceError, SpecError
from layerscope.nets.layers import Gain, Maker

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class FeedForward(nn.Module):
    """``down(act(up(x)))`` on every token."""

    def __init__(self, make: Maker, width: int, hidden: int, act: nn.Module, *, gain: float = 1.0) -> None:
        super().__init__()
        self.up = make.linear(width, hidden, gain=gain)
        self.act = act
        self.down = make.linear(hidden, width, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class LayerScale(nn.Module):
    """A learnable gain per channel of a residual branch, small at the start.

    Source: Touvron et al. 2021, arXiv 2103.17239.
    """

    def __init__(self, channels: int, start: float, *, maps: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels, 1, 1) if maps else (channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """``gain * x``, for tokens [N, S, C] or maps [N, C, H, W]."""
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


class ResidualAdd(nn.Module):
    """``after(skip * x + scale(inner(branch(before(x)))))``.

    ``pre``: the norm is ``before``; ``post``: it is ``after``; ``peri``: there is one ``before`` and one ``inner``.
    """

    def __init__(
        self, branch: nn.Module, norm: Callable[[], nn.Module], placement: str, scale: nn.Module, skip: float = 1.0
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


class TokenNet(nn.Module):
    """Patches -> tokens (plus a learned position each), blocks, average over tokens, linear classifier."""

    def __init__(
        self,
        embed: nn.Module,
        blocks: list[nn.Module],
        norm: nn.Module,
        head: nn.Module,
        patch: int,
        position: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = embed
        self.position = None if position is None else nn.Parameter(position)
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        tokens = self.embed(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        if self.position is not None:
            tokens = tokens + self.position
        out: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return out


def count_tokens(name: str, in_shape: tuple[int, int, int], patch: int) -> int:
    """Patches of an image.

    Raises:
        SourceError: the patches do not divide it.
    """
    if in_shape[1] % patch or in_shape[2] % patch:
        raise SourceError(
            f"{name}: patch={patch} does not divide the {in_shape[1]} x {in_shape[2]} image; resize it or set patch"
        )
    return (in_shape[1] // patch) * (in_shape[2] // patch)


def require_norm_without_activation(name: str, make: Maker, width: int) -> None:
    """Refuse norms that live in an activation slot (EvoNorm), where norms have no activation after them.

    Raises:
        SpecError: it is one.
    """
    recipe = make.recipe
    if recipe.owns_activation and not recipe.acts_on_weights and isinstance(recipe.norm(width), nn.Identity):
        raise SpecError(
            f"{name}: {recipe.spec} is norm and activation in one; the norms of {name} have no activation after them. "
            "Use layer, rms, batch or another plain norm"
        )


def hidden_activation(make: Maker, channels: int, base: Callable[[], nn.Module]) -> nn.Module:
    """The activation inside a branch, which no norm stands before.

    The scaled ReLU belongs to its weights and comes along; FRN's threshold belongs to FRN's own position and does not.
    """
    return make.activation(channels, base) if make.recipe.acts_on_weights else base()


def branch_scale(branch: str, width: int, depth: int) -> nn.Module:
    """What stands at the end of a residual branch; ``depth`` counts the network's blocks."""
    if branch == "depth":
        return FixedScale(1 / math.sqrt(depth))
    if branch == "skipinit":
        return Gain()
    if branch == "layerscale":
        # Values of the paper: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond.
        return LayerScale(width, 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6)
    return nn.Identity()
