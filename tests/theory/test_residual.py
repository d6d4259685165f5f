"""Similarity along residual streams against real blocks."""

import pytest
import torch
from torch.nn import functional as F

from layerscope.theory import predict
from theory import random_nets as nets

CASES = [
    ("batch", nets.batch),
    ("instance", nets.group(1)),
    ("group:size=4", nets.group(4)),
    ("group:size=16", nets.group(16)),
    ("layer", nets.group(64)),
    ("frn", nets.frn),
    ("none", nets.identity),
]


def measured(norm, topology, *, depth=9, width=64, side=8, n=16, seed=0):
    g = torch.Generator().manual_seed(seed)

    def conv(x):
        w = torch.randn(width, width, 3, 3, generator=g) * (2 / (9 * width)) ** 0.5
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w)

    x = norm(conv(torch.randn(n, width, side, side, generator=g))).relu()
    x = x if topology == "post" else conv(x)
    cosines, moments = [], []
    for _ in range(depth):
        if topology == "post":
            x = (x + norm(conv(norm(conv(x)).relu()))).relu()
        else:
            x = x + conv(norm(conv(norm(x).relu())).relu())
        cosines.append(nets.mean_cosine(x))
        moments.append(float(x.square().mean()))
    return cosines, moments


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("topology", ["post", "pre"])
@pytest.mark.parametrize(("spec", "norm"), CASES)
def test_cosine_and_second_moment_along_the_stream(spec, norm, topology):
    runs = [measured(norm, topology, seed=s) for s in range(3)]
    said = predict(spec, depth=9, width=64, positions=64, batch_size=16, topology=topology, padding="circular")
    assert len(said.cosines) == 9
    for block in (0, 4, 8):
        seen = sum(cosines[block] for cosines, _ in runs) / 3
        assert said.cosines[block] == pytest.approx(seen, abs=said.cosine_error)
    if spec != "none":
        assert said.second_moments[8] == pytest.approx(sum(m[8] for _, m in runs) / 3, rel=0.15)


def test_skipinit_leaves_the_stream_as_the_stem_made_it():
    for topology in ("post", "pre"):
        said = predict("batch", depth=5, width=64, positions=64, batch_size=16, topology=f"{topology}-skipinit")
        assert max(said.second_moments) == pytest.approx(min(said.second_moments))
        assert max(said.cosines) == pytest.approx(min(said.cosines))


def test_a_transition_resets_the_stream():
    positions = [256] * 6 + [64] * 6
    said = predict("batch", depth=12, width=64, positions=positions, batch_size=32, topology="post")
    q = said.second_moments
    assert q[5] > 4
    assert q[6] < 2.5
    assert q[11] > 4


def test_what_is_not_covered_says_so():
    said = predict("batch", depth=5, positions=64, batch_size=8, topology="post")
    assert said.rate is None
    assert "residual stream" in said.why("rate")
    for spec in ("weight", "variance"):
        said = predict(spec, depth=5, positions=64, batch_size=8, topology="post")
        assert said.cosine is None
        assert "not covered" in said.why("cosines")


def test_the_same_seed_gives_the_same_numbers():
    first, second = (predict("group:size=4", depth=4, width=32, positions=64, topology="post") for _ in range(2))
    assert first == second
