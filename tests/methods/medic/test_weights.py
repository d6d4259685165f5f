from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.methods.medic import MedicError, clone_loss, importance
from layerscope.methods.medic.weights import criteria, effective_count


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_case():
    z = torch.tensor([[0.0, math.log(2)]])
    w = importance(z, torch.zeros_like(z), 1.0)
    assert torch.allclose(w, torch.tensor([[math.sqrt(1 / 6), math.sqrt(1 / 3)]]), atol=1e-6)
    assert w.sum().item() == pytest.approx(0.985599, abs=1e-6)
    w = importance(z, z, 1.0)
    assert torch.allclose(w, torch.tensor([[1 / 3, 2 / 3]]), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_weight_is_subnormal(dtype):
    z = torch.tensor([[0.0, 50.0, 100.0, 400.0]], dtype=dtype)
    w = importance(z, torch.zeros_like(z), 5.0)
    assert w[0, 3].item() == pytest.approx(0.5)
    assert (w >= torch.finfo(dtype).tiny).all()


@given(st.integers(0, 10_000), st.floats(0, 20), st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_total_is_at_most_one_and_constants_change_nothing(seed, tau, shift):
    z, g = draw(seed, 3, 4, 2, 2), draw(seed + 1, 3, 4, 2, 2)
    w = importance(z, g, tau)
    totals = w.flatten(1).sum(1)
    assert (totals > 0).all()
    assert (totals <= 1 + 1e-12).all()
    assert torch.allclose(importance(z + shift, g, tau), w, atol=1e-12)
    assert torch.allclose(importance(z, g + shift, tau), w, atol=1e-12)
    assert torch.allclose(importance(z, z, tau).flatten(1).sum(1), torch.ones(3, dtype=torch.float64))
    if tau > 0.1:
        assert (totals < 1 - 1e-9).all()


def test_sharpness_zero_is_uniform():
    z, g = draw(0, 2, 6), draw(1, 2, 6)
    expected = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    for kind in ("signed", "magnitude", "activation", "impact"):
        assert torch.allclose(importance(z, g, 0.0, kind), expected)
    assert torch.allclose(importance(z, None, 5.0, "uniform"), expected)


def test_kinds_by_their_definitions():
    z, g, tau = draw(0, 2, 5), draw(1, 2, 5), 2.0
    p, q = (tau * z).softmax(1), (tau * g).softmax(1)
    assert torch.allclose(importance(z, None, tau, "activation"), (p / 5).sqrt())
    assert torch.allclose(importance(z, g, tau, "impact"), (q / 5).sqrt())
    size = [t.abs() / t.square().mean(1, keepdim=True).sqrt() for t in (z, g)]
    expected = ((tau * size[0]).softmax(1) * (tau * size[1]).softmax(1)).sqrt()
    assert torch.allclose(importance(z, g, tau, "magnitude"), expected)
    assert torch.equal(importance(z, g, tau, lambda z, g, tau: z.square()), z.square())


def test_effective_count_of_even_and_peaked_criteria():
    z = torch.tensor([[0.0, 0.0, 0.0, 100.0]])
    log_p, log_q = criteria(z, torch.zeros(1, 4), 1.0, "signed")
    assert effective_count(log_p) == pytest.approx(1.0)
    assert effective_count(log_q) == pytest.approx(4.0)


def test_half_precision_is_weighted_in_float32():
    z = draw(0, 2, 6).half()
    assert importance(z, z, 5.0).dtype == torch.float32


def test_clone_loss_by_hand_with_its_gradient():
    teacher, student = {"a": draw(0, 2, 3, 2)}, {"a": draw(1, 2, 3, 2).requires_grad_()}
    weights, sigma = {"a": draw(2, 2, 3, 2).abs()}, {"a": draw(3, 1, 3, 1).abs() + 0.1}
    total, parts = clone_loss(teacher, student, weights, sigma)
    gap = teacher["a"] - student["a"].detach()
    by_hand = 0.0
    for b, c, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        by_hand += float(weights["a"][b, c, i] * (gap[b, c, i] / sigma["a"][0, c, 0]) ** 2) / 2
    assert total.item() == pytest.approx(by_hand)
    assert parts["a"].item() == pytest.approx(by_hand)
    total.backward()
    expected = 2 * weights["a"] * (student["a"].detach() - teacher["a"]) / sigma["a"] ** 2 / 2
    assert torch.allclose(student["a"].grad, expected)


def test_dead_channel_is_not_compared():
    teacher, student = {"a": torch.zeros(1, 2)}, {"a": torch.ones(1, 2)}
    total, _ = clone_loss(teacher, student, {"a": torch.ones(1, 2)}, {"a": torch.tensor([[0.0, 0.5]])})
    assert total.item() == pytest.approx(4.0)


def test_bad_inputs():
    z = torch.zeros(1, 2)
    with pytest.raises(MedicError, match="did you mean 'signed'"):
        importance(z, z, 1.0, "sign")
    with pytest.raises(MedicError, match="negative"):
        importance(z, z, -1.0)
    with pytest.raises(MedicError, match="needs the loss gradient"):
        importance(z, None, 1.0)
    with pytest.raises(MedicError, match="another architecture"):
        clone_loss({"a": z}, {"a": torch.zeros(1, 3)}, {"a": z}, {"a": z})
    with pytest.raises(MedicError, match="no tap"):
        clone_loss({}, {}, {}, {})
