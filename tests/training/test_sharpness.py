"""Curvature by differences of gradients, against the exact Hessian of small smooth networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerscope.errors import TrainingError
from layerscope.training import curvature


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)).double()


def batch(seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=g, dtype=torch.float64), torch.randint(3, (16,), generator=g)


def exact(model, x, y):
    """Gradient and Hessian over all weights together."""
    names, weights = zip(*model.named_parameters(), strict=True)
    sizes = [w.numel() for w in weights]
    flat = torch.cat([w.detach().flatten() for w in weights])

    def loss(v):
        parts = {n: p.view(w.shape) for n, p, w in zip(names, v.split(sizes), weights, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parts, (x,)), y)

    return torch.autograd.functional.jacobian(loss, flat), torch.autograd.functional.hessian(loss, flat)


def test_gradient_and_curvature_are_those_of_the_exact_hessian():
    model, (x, y) = network(), batch()
    g, h = exact(model, x, y)
    found = curvature(model, (x, y), iterations=40)
    assert found.loss == pytest.approx(F.cross_entropy(model(x), y).item())
    assert found.gradient == pytest.approx(float(g.norm()), rel=1e-6)
    assert found.along_gradient == pytest.approx(float(g @ h @ g / (g @ g)), rel=2e-2)
    assert found.sharpness == pytest.approx(float(torch.linalg.eigvalsh(h).abs().max()), rel=2e-2)
    assert found.overshoot(0.1) == pytest.approx(0.05 * found.sharpness)


def test_on_a_quadratic_gradient_descent_diverges_exactly_beyond_the_stable_rate():
    torch.manual_seed(0)
    x = torch.randn(32, 5) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1])
    y = torch.randn(32, 1)
    model = nn.Linear(5, 1, bias=False)
    found = curvature(model, (x, y), iterations=50, loss="mse")
    for factor, stable in ((0.95, True), (1.05, False)):
        copy = nn.Linear(5, 1, bias=False)
        copy.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(copy.parameters(), lr=factor * 2 / found.sharpness)
        for _ in range(400):
            optimizer.zero_grad()
            F.mse_loss(copy(x), y).backward()
            optimizer.step()
        assert bool(F.mse_loss(copy(x), y) < 1e3) is stable


def test_it_changes_nothing_and_gives_the_same_numbers_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    model.eval()
    x, y = batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    first = curvature(model, (x, y), seed=3)
    assert first == curvature(model, (x, y), seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_networks_that_are_broken_or_frozen():
    model, (x, y) = network(), batch()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    found = curvature(model, (x, y))
    assert found.loss != found.loss
    with pytest.raises(TrainingError, match="at least one iteration"):
        curvature(network(), (x, y), iterations=0)
    with pytest.raises(TrainingError, match="no trainable weights"):
        curvature(network().requires_grad_(False), (x, y))
