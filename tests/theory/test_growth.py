"""Growth laws against real residual streams of MLP blocks."""

import math

import pytest
import torch

from layerscope.theory import nf_stream, predict
from theory import random_nets as nets


def stream(topology, norm, *, scaled=False, depth=16, width=256, n=64, seed=0, gain=1.0):
    """Second moments of the residual stream after every block; the branch is two He linear layers."""
    g = torch.Generator().manual_seed(seed)

    def linear(h, centred=False):
        w = torch.randn(width, width, generator=g)
        if centred:
            w = w - w.mean(1, keepdim=True)
            w = w / w.std(1, unbiased=False, keepdim=True)
            return h @ w.T * (math.sqrt(2 * math.pi / (math.pi - 1)) / math.sqrt(width))
        if scaled:
            return h @ (w / w.norm(dim=1, keepdim=True)).T
        return h @ w.T * math.sqrt(2.0 / width)

    def act(u):
        if scaled:
            return math.sqrt(2 * math.pi / (math.pi - 1)) * (u.relu() - 1 / math.sqrt(2 * math.pi))
        return u.relu()

    centred = norm == "sws"
    norm = nets.identity if centred else norm
    x = torch.randn(n, width, generator=g)
    x = act(norm(x)) if topology == "post" else x
    moments = []
    for _ in range(depth):
        if topology == "post":
            x = act(gain * norm(linear(act(norm(linear(x, centred))), centred)) + x)
        else:
            x = x + gain * linear(act(norm(linear(act(norm(x)), centred))), centred)
        moments.append(float(x.square().mean()))
    return moments


def average(*args, **kwargs):
    runs = [stream(*args, seed=s, **kwargs) for s in range(4)]
    return [sum(m) / len(m) for m in zip(*runs, strict=True)]


def factor(moments):
    return (moments[-1] / moments[3]) ** (1 / (len(moments) - 4))


def increment(moments):
    return (moments[-1] - moments[3]) / (len(moments) - 4)


def layer(u):
    return torch.nn.functional.layer_norm(u, u.shape[1:])


@pytest.mark.parametrize("topology", ["pre", "post"])
@pytest.mark.parametrize(("spec", "norm"), [("none", nets.identity), ("sws", "sws")])
def test_without_activation_statistics_the_stream_grows_exponentially(topology, spec, norm):
    said = predict(spec, depth=16, topology=topology)
    assert said.growth == "exponential"
    assert said.growth_factor == pytest.approx(factor(average(topology, norm)), rel=said.growth_error)


def test_pre_activation_without_a_norm_doubles():
    assert 1.9 <= factor(average("pre", nets.identity)) <= 2.15
    assert predict("none", depth=16, topology="pre").growth_factor == pytest.approx(2.0)


@pytest.mark.parametrize("topology", ["pre", "post"])
@pytest.mark.parametrize(("spec", "norm"), [("batch", nets.batch), ("layer", layer)])
def test_with_activation_statistics_it_grows_by_a_constant(topology, spec, norm):
    moments = average(topology, norm, depth=20)
    said = predict(spec, depth=20, width=256, batch_size=64, topology=topology)
    assert said.growth == "linear"
    assert said.growth_factor == pytest.approx(increment(moments), rel=said.growth_error)
    if topology == "pre":
        assert 0.9 <= increment(moments) <= 1.05


def test_scaled_relu_on_the_sum_grows_fastest_and_even_with_skipinit():
    assert factor(average("post", nets.identity, scaled=True)) > 4
    said = predict("weight", depth=16, topology="post")
    assert (said.growth, said.growth_factor > 4) == ("exponential", True)
    with_skipinit = factor(average("post", nets.identity, scaled=True, gain=0.0, depth=30))
    said = predict("weight", depth=30, topology="post-skipinit")
    assert said.growth == "exponential"
    assert said.growth_factor == pytest.approx(with_skipinit, rel=said.growth_error)


@pytest.mark.parametrize("norm", [nets.identity, nets.batch, layer])
@pytest.mark.parametrize("topology", ["pre", "post"])
def test_skipinit_keeps_the_stream_exactly(norm, topology):
    moments = stream(topology, norm, gain=0.0)
    assert max(moments) == pytest.approx(min(moments), rel=1e-6)
    for spec in ("none", "batch", "sws", "group:size=8"):
        said = predict(spec, depth=16, width=64, batch_size=8, topology=f"{topology}-skipinit")
        assert (said.growth, said.growth_factor) == ("constant", 1.0)


def test_normalizer_free_stream():
    assert nf_stream(10, alpha=0.5)[-1] == pytest.approx(3.5)


def test_zero_padding_slows_the_growth():
    padded = predict("none", depth=9, positions=64, topology="pre").growth_factor
    assert 1.7 < padded < predict("none", depth=9, positions=64, topology="pre", padding="circular").growth_factor
