"""nu against random networks in which the companions of an anchor are drawn again and again."""

import pytest
import torch
from torch.nn import functional as F

from layerscope.theory import predict
from layerscope.theory.batch_noise import batch_noise
from theory import random_nets as nets

DEPTHS = (1, 3, 8)


def measured(norm, batch, side, *, width=96, anchors=16, draws=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(width, width, 3, 3, generator=g) * (2 / (9 * width)) ** 0.5 for _ in range(max(DEPTHS))]
    x = torch.randn(anchors, width, side, side, generator=g)
    z = {depth: torch.zeros(anchors, draws, width, dtype=torch.double) for depth in DEPTHS}
    for i in range(anchors):
        for k in range(draws):
            h = torch.cat([x[i : i + 1], torch.randn(batch - 1, width, side, side, generator=g)])
            for layer, w in enumerate(weights, 1):
                h = norm(F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), w)).relu()
                if layer in z:
                    z[layer][i, k] = h[0].mean((1, 2)).double()
    found = {}
    for depth, values in z.items():
        noise = values.var(1).sum(-1).mean()
        signal = values.mean(1).var(0).sum() - noise / draws
        found[depth] = float(noise / signal)
    return found


@pytest.mark.parametrize(("batch", "side"), [(4, 4), (16, 4)])
def test_batch_norm(batch, side):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seen = measured(nets.batch, batch, side)
    torch.set_num_threads(threads)
    said = batch_noise(batch, [side * side] * max(DEPTHS))
    for depth, nu in seen.items():
        assert said[depth - 1] == pytest.approx(nu, rel=0.35)


def test_it_falls_with_the_batch_and_grows_with_depth():
    by_batch = [batch_noise(b, [16] * 10)[-1] for b in (2, 4, 8, 16, 32, 64)]
    assert by_batch == sorted(by_batch, reverse=True)
    by_depth = batch_noise(8, [16] * 10)
    assert list(by_depth) == sorted(by_depth)
    assert batch_noise(100_000, [16] * 5)[-1] < 1e-3


def test_small_batches_of_a_deep_net_drown_the_sample():
    assert predict("batch", depth=20, positions=16, batch_size=4).batch_noise > 1
    assert predict("batch", depth=10, positions=64, batch_size=32).batch_noise < 0.5


@pytest.mark.parametrize("spec", ["layer", "instance", "group:size=4", "frn", "weight", "sws", "none"])
def test_it_is_exactly_zero_without_batch_statistics(spec):
    assert predict(spec, depth=5, width=64, positions=64, batch_size=4).batch_noise == 0.0


def test_where_it_is_not_known_there_is_a_reason():
    said = predict("batch", depth=5, positions=64, batch_size=8, topology="pre")
    assert said.batch_noise is None
    assert "plain stacks" in said.why("batch_noise")
