"""Training with the quantiser in the loop: what it trains is what the integer network computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope.methods import encrypted as she
from methods.encrypted.example_nets import made


@pytest.mark.parametrize("name", ["residual", "branches"])
@pytest.mark.parametrize("correct", [False, True])
def test_the_student_computes_what_the_integers_compute(name, correct):
    """Equal up to the rounding of biases, which the student keeps as floats: a fraction of the outputs' spread.

    On a mean over networks, because a sign (in branches) doubles the least difference.
    """
    ratios = []
    for seed in range(4):
        net, x = made(name, seed)
        start = she.quantize(net, x, bits=3, act_bits=4, correct_bias=correct)
        student = she.QatNet(start, x).eval()
        with torch.no_grad():
            ratios.append((student(x) - start(x)).abs().mean(0) / start(x).std(0))
    assert float(torch.stack(ratios).mean()) < 0.25


def test_without_biases_and_offsets_they_are_equal():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4, bias=False)
        ).eval()
        x = torch.rand(40, 1, 8, 8)
    start = she.quantize(net, x, bits=3, act_bits=3, input_range=(0.0, 1.0), correct_bias=False)
    student = she.QatNet(start, x).eval()
    with torch.no_grad():
        assert torch.allclose(student(x), start(x), atol=1e-4)


def test_gradients_reach_every_weight():
    net, x = made("residual")
    student = she.QatNet(she.quantize(net, x, bits=3, act_bits=4), x)
    student(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.weights.values())


def test_finetuning_recovers_what_quantisation_lost():
    """Four classes by the brightest quadrant; coarse codes lose accuracy and training gets some back."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (400,), generator=g)
    x = torch.rand(400, 1, 8, 8, generator=g) * 0.6
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4))
    from layerscope import training

    training.fit(net, (x, y), epochs=8, batch_size=25, optimizer="adamw", lr=1e-2, progress=False)
    net.eval()
    start = she.quantize(net, x[:200], bits=2, act_bits=2)
    tuned = she.finetune(start, (x, y), x[:200], valid=(x, y), epochs=4, rounds=3, lr=5e-3, batch_size=25)

    def score(made):
        return float((made(x).argmax(1) == y).float().mean())

    assert score(tuned) >= score(start)
    assert score(tuned) > 0.8
    assert tuned.settings == start.settings
