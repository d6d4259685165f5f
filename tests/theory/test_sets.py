"""The set maps against brute force: draw whole sets of Gaussians, normalize them, read the moments off."""

import numpy as np
import pytest

from layerscope.theory.sets import ChannelSets, SampleSets
from layerscope.theory.small_sets import SmallSets

CASES = [(0.32, 0.30), (0.7, 0.6), (0.95, 0.94), (0.0, 0.0)]


def brute_channels(g, s, centred, a, b, n=None, seed=0):
    n = n or min(20_000, 600_000 // (g * s))
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((2, n, g, 1))
    rho = b / a if a else 0.0
    shared[1] = rho * shared[0] + np.sqrt(1 - rho**2) * shared[1]
    u = np.sqrt(a) * shared + np.sqrt(1 - a) * rng.standard_normal((2, n, g, s))
    m = g * s
    if centred:
        u = u - u.mean((2, 3), keepdims=True)
    sigma2 = (u**2).mean((2, 3), keepdims=True)
    x = u / np.sqrt(sigma2)
    q = (x**2).mean() / 2
    within = across = 0.0
    for h in (np.maximum(x, 0.0), np.maximum(-x, 0.0)):
        within += ((h.sum(3) ** 2 - (h**2).sum(3)) / (s * (s - 1))).mean() / q / 2
        across += (h[0].mean(2) * h[1].mean(2)).mean() / q / 2
    d = rng.standard_normal(x.shape)
    if centred and g == 1:  # what comes back through the next layer's norm sums to zero over a set of one channel
        d = (d - d.mean((2, 3), keepdims=True)) * np.sqrt(m / (m - 1))
    d = d * (x > 0)
    back = d - x * (x * d).mean((2, 3), keepdims=True)
    if centred:
        back = back - d.mean((2, 3), keepdims=True)
    assert m > 3
    return q, within, across, (back**2 / sigma2).mean()


def brute_samples(batch, s, centred, a, b, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    u = np.sqrt(b) * rng.standard_normal((n, 1, 1)) + np.sqrt(a - b) * rng.standard_normal((n, batch, 1))
    u = u + np.sqrt(1 - a) * rng.standard_normal((n, batch, s))
    mu = u.mean((1, 2), keepdims=True)
    sigma2 = ((u - mu) ** 2).mean((1, 2), keepdims=True)
    xhat = (u - mu) / np.sqrt(sigma2)
    y = xhat if centred else u / np.sqrt(sigma2)
    h = np.maximum(y, 0.0)
    q = (h**2).mean()
    within = ((h.sum(2) ** 2 - (h**2).sum(2)) / (s * (s - 1))).mean() / q if s > 1 else 0.0
    means = h.mean(2)
    across = ((means.sum(1) ** 2 - (means**2).sum(1)) / (batch * (batch - 1))).mean() / q
    d = rng.standard_normal(y.shape)
    if centred:
        d = (d - d.mean((1, 2), keepdims=True)) * np.sqrt(batch * s / (batch * s - 1))
    d = d * (y > 0)
    back = d - xhat * (y * d).mean((1, 2), keepdims=True)
    if centred:
        back = back - d.mean((1, 2), keepdims=True)
    return q, within, across, (back**2 / sigma2).mean()


def step(layer, a, b):
    out = layer.step(np.array([[a]]), np.array([[b]]), np.array([[b]]))
    return tuple(float(v[0, 0]) for v in (out.q, out.a, out.b, out.gain))


def one(kind, units, positions, centred):
    return kind(np.array([units]), np.array([positions]), np.array([centred]))


@pytest.mark.parametrize(("a", "b"), CASES)
@pytest.mark.parametrize(
    ("g", "s", "centred"), [(1, 64, True), (2, 36, True), (8, 16, True), (64, 4, True), (1, 64, False), (32, 2, False)]
)
def test_channel_sets_against_brute_force(g, s, centred, a, b):
    expected = brute_channels(g, s, centred, a, b)
    q, within, across, gain = step(one(ChannelSets, g, s, centred), a, b)
    assert q == pytest.approx(expected[0], rel=0.04)
    assert within == pytest.approx(expected[1], abs=0.015)
    assert across == pytest.approx(expected[2], abs=0.015)
    assert gain == pytest.approx(expected[3], rel=0.05)


@pytest.mark.parametrize(("a", "b"), [(0.32, 0.32), (0.5, 0.32), (0.0, 0.0), (0.9, 0.8)])
@pytest.mark.parametrize(("batch", "s"), [(8, 16), (32, 1), (2, 64)])
@pytest.mark.parametrize("centred", [True, False])
def test_sample_sets_against_brute_force(batch, s, centred, a, b):
    expected = brute_samples(batch, s, centred, a, b, n=8000)
    q, within, across, gain = step(one(SampleSets, batch, s, centred), a, b)
    assert q == pytest.approx(expected[0], rel=0.06)
    if s > 1:
        assert within == pytest.approx(expected[1], abs=0.02)
    assert across == pytest.approx(expected[2], abs=0.02)
    assert gain == pytest.approx(expected[3], rel=0.06)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.25), (0.0, 0.0), (0.8, 0.7)])
@pytest.mark.parametrize(("g", "s", "centred"), [(1, 9, True), (2, 4, True), (4, 2, True), (1, 9, False)])
def test_small_channel_sets_against_brute_force(g, s, centred, a, b):
    expected = brute_channels(g, s, centred, a, b, n=20_000)
    got = step(SmallSets("channels", g, s, centred), a, b)
    assert got[:3] == pytest.approx(expected[:3], abs=0.015)
    assert got[3] == pytest.approx(expected[3], rel=0.1)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("batch", "s"), [(8, 1), (4, 3)])
def test_small_sample_sets_against_brute_force(batch, s, centred):
    a = b = 0.3
    expected = brute_samples(batch, s, centred, a, b, n=20_000)
    got = step(SmallSets("samples", batch, s, centred), a, b)
    assert got[0] == pytest.approx(expected[0], rel=0.05)
    assert got[2] == pytest.approx(expected[2], abs=0.015)
    assert got[3] == pytest.approx(expected[3], rel=0.1)


def test_identical_samples_stay_identical():
    layer = ChannelSets(np.array([4, 16]), np.array([64, 64]), np.array([True, True]))
    a = np.array([[0.999999], [0.999999]])
    np.testing.assert_allclose(layer.step(a, a, a).b, 1.0, atol=1e-3)
