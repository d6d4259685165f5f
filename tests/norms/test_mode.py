from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerscope import norms
from layerscope.errors import SpecError


def data(seed: int = 0) -> Tensor:
    return torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.7


def randomized(k: int = 3) -> norms.ModeNorm:
    layer = norms.build(f"mode:k={k}", 4).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype))
    return layer


def test_forward_and_gradients_are_those_of_the_definition() -> None:
    layer, x = randomized(), data().requires_grad_()
    tau = torch.softmax(layer.gate(x.mean((2, 3))), 1)
    want = 0
    for k in range(3):
        share = (tau[:, k] / tau[:, k].sum()).view(-1, 1, 1, 1)
        mean = (share * x).mean((2, 3), keepdim=True).sum(0, keepdim=True)
        var = (share * (x - mean) ** 2).mean((2, 3), keepdim=True).sum(0, keepdim=True)
        want = want + tau[:, k].view(-1, 1, 1, 1) * (x - mean) / torch.sqrt(var + 1e-5)
    want = want * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
    y = layer(x)
    torch.testing.assert_close(y, want, rtol=1e-11, atol=1e-11)
    upstream = data(9)
    inputs = [x, layer.gate.weight, layer.weight]
    for a, b in zip(torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(want, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_evaluation_uses_running_moments() -> None:
    layer = randomized()
    for seed in range(3):
        layer(data(seed))
    x = data(7)
    tau = torch.softmax(layer.gate(x.mean((2, 3))), 1)
    std = torch.sqrt(layer.running_second - layer.running_mean**2 + 1e-5)
    z = (x.unsqueeze(1) - layer.running_mean.view(1, 3, 4, 1, 1)) / std.view(1, 3, 4, 1, 1)
    want = (tau.view(6, 3, 1, 1, 1) * z).sum(1) * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer.eval()(x), want, rtol=1e-11, atol=1e-11)


def test_gate_weights_are_drawn_from_their_own_generator() -> None:
    before = torch.get_rng_state()
    a, b = norms.ModeNorm(4, 2, seed=3), norms.ModeNorm(4, 2, seed=3)
    torch.testing.assert_close(a.gate.weight, b.gate.weight)
    assert (a.gate.weight.detach() - 0.5).abs().max().item() < 0.06
    del before


def test_no_mode_is_refused() -> None:
    with pytest.raises(SpecError, match="k=0"):
        norms.ModeNorm(4, 0)
