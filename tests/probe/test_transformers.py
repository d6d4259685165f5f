"""Token collapse in deep random transformers: post-norm collapses, pre-norm less, scaled branches least."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerscope.probe import profile


class Layer(nn.Module):
    """One attention and one feed-forward branch; weights drawn with variance 1 / fan-in."""

    def __init__(self, width: int, placement: str, scale: float) -> None:
        super().__init__()
        self.placement, self.scale = placement, scale
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        for linear in (self.q, self.k, self.v, self.o, self.up, self.down):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def attend(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).mT / x.shape[-1] ** 0.5).softmax(-1)
        out: Tensor = self.o(weights @ self.v(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.placement == "post":
            x = self.norm1(x + self.scale * self.attend(x))
            out: Tensor = self.norm2(x + self.scale * self.down(self.act(self.up(x))))
            return out
        x = x + self.scale * self.attend(self.norm1(x))
        return x + self.scale * self.down(self.act(self.up(self.norm2(x))))


class Net(nn.Module):
    def __init__(self, placement: str, depth: int = 24, width: int = 64, *, scaled: bool = False) -> None:
        super().__init__()
        scale = depth**-0.5 if scaled else 1.0
        self.layers = nn.ModuleList(Layer(width, placement, scale) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


@pytest.mark.parametrize(
    ("placement", "scaled", "low", "high"),
    [("post", False, 0.99, 1.0001), ("pre", False, 0.6, 0.9), ("post", True, -1.0, 0.5), ("pre", True, -1.0, 0.5)],
)
def test_token_cosine_at_24_layers(placement: str, scaled: bool, low: float, high: float) -> None:
    torch.manual_seed(0)
    model = Net(placement, scaled=scaled)
    seen = profile(model, torch.randn(8, 32, 64), blocks=["layers.*"], select=["layers.?", "layers.??"])
    last = seen["layers.23"]
    assert last.role == "block"
    assert last.layout == "token"
    assert last.cosine_token is not None
    assert low < last.cosine_token < high
