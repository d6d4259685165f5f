"""The one entry point against real random networks, limits, laws and bad input."""

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.errors import LayerscopeError, SpecError
from layerscope.theory import Configuration, cosine_by_depth, covered, finite_set_rate, predict, predict_many
from theory import random_nets as nets

GROUPS = (1, 2, 4, 8, 16, 32)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def measured(build, norm, seeds=(0, 1), **sizes):
    runs = [build(norm, seed=s, **sizes) for s in seeds]
    return mean(r.cosines[-1] for r in runs), mean(r.rate for r in runs)


def on_maps(norm, depth=20, **kwargs):
    return predict(norm, depth=depth, width=128, positions=64, batch_size=16, padding="circular", **kwargs)


@pytest.mark.parametrize(
    ("spec", "norm"),
    [(f"group:size={g}", nets.group(g)) for g in GROUPS]
    + [("group:size=64", nets.group(64)), ("layer", nets.group(128)), ("frn", nets.frn), ("batch", nets.batch)],
)
def test_recursion_agrees_with_convolutional_nets(spec, norm):
    cosine, rate = measured(nets.conv_net, norm)
    said = on_maps(spec)
    assert said.cosine == pytest.approx(cosine, abs=said.cosine_error)
    assert said.rate == pytest.approx(rate, abs=said.rate_error)


SHRINKING = [8] * 7 + [4] * 7 + [2] * 6


@pytest.mark.parametrize("sides", [SHRINKING, [4] * 20])
@pytest.mark.parametrize(
    ("spec", "norm"),
    [
        ("none", nets.identity),
        ("instance", nets.group(1)),
        ("group:size=4", nets.group(4)),
        ("group:size=16", nets.group(16)),
        ("layer", nets.group(128)),
        ("frn", nets.frn),
        ("batch", nets.batch),
    ],
)
def test_recursion_agrees_with_zero_padded_nets(spec, norm, sides):
    runs = [nets.padded_net(norm, sides, seed=s) for s in (0, 1)]
    said = predict(spec, depth=len(sides), width=128, positions=[s * s for s in sides], batch_size=16)
    assert said.cosine == pytest.approx(mean(r.cosines[-1] for r in runs), abs=said.cosine_error)
    assert said.cosine_pooled == pytest.approx(mean(r.pooled[-1] for r in runs), abs=0.08)
    assert said.rate == pytest.approx(mean(r.rate for r in runs), abs=said.rate_error)


@pytest.mark.parametrize("sides", [SHRINKING, [4] * 20, [2] * 20])
def test_variance_norm_on_padded_maps_knows_the_pattern_of_the_border(sides):
    runs = [nets.padded_net(nets.variance, sides, seed=s) for s in (0, 1)]
    said = predict("variance", depth=20, width=128, positions=[s * s for s in sides], batch_size=16)
    assert said.cosine_error <= 0.08
    assert said.cosine == pytest.approx(mean(r.cosines[-1] for r in runs), abs=said.cosine_error)
    assert said.rate == pytest.approx(mean(r.rate for r in runs), abs=said.rate_error)


def test_variance_norm_without_a_border_states_an_error_by_its_width():
    runs = [nets.mlp(nets.variance, width=w, seed=1) for w in (64, 256)]
    said = [predict("variance", depth=20, width=w, batch_size=64) for w in (64, 256)]
    for run, p in zip(runs, said, strict=True):
        assert p.cosine == pytest.approx(run.cosines[-1], abs=p.cosine_error)
        assert p.rate == pytest.approx(run.rate, abs=p.rate_error)
        assert any("narrow networks" in note for note in p.notes)
    assert said[0].cosine_error > said[1].cosine_error > predict("variance", depth=20, batch_size=64).cosine_error
    conv = nets.conv_net(nets.variance, seed=1)
    on_circular = predict("variance", depth=20, width=128, positions=64, batch_size=16, padding="circular")
    assert on_circular.cosine == pytest.approx(conv.cosines[-1], abs=on_circular.cosine_error)
    assert on_circular.rate == pytest.approx(conv.rate, abs=on_circular.rate_error)


def test_cosine_rises_and_rate_falls_with_the_group_size_in_theory_and_in_nets():
    said = [on_maps(f"group:size={g}") for g in GROUPS]
    seen = [measured(nets.conv_net, nets.group(g)) for g in GROUPS]
    for cosines in ([p.cosine for p in said], [c for c, _ in seen]):
        assert all(low < high for low, high in itertools.pairwise(cosines))
    for rates in ([p.rate for p in said], [r for _, r in seen]):
        assert all(high > low for high, low in itertools.pairwise(rates))


def test_one_channel_a_group_is_instance_norm_and_all_of_them_layer_norm():
    assert on_maps("group:size=1").cosines == on_maps("instance").cosines
    assert on_maps("group:size=128").cosines == on_maps("group:groups=1").cosines == on_maps("layer").cosines
    assert on_maps("group:groups=32").rate == on_maps("group:size=4").rate


def test_limits_in_the_group_size():
    one = predict("instance", depth=40, positions=10_000, padding="circular")
    assert one.cosine == pytest.approx(1 / math.pi, abs=0.005)
    assert one.rate == pytest.approx(float(finite_set_rate(10_000)), rel=0.005)
    everything = predict("layer", depth=20, positions=10_000, padding="circular")
    assert everything.cosines == pytest.approx(cosine_by_depth(20), abs=0.005)
    assert everything.rate == pytest.approx(1.0, abs=0.002)


@pytest.mark.parametrize("spec", ["none", "rms"])
def test_without_centring_the_cosine_follows_kappa_in_wide_nets(spec):
    def rms(u):
        return u / u.pow(2).mean(1, keepdim=True).sqrt()

    runs = [nets.mlp(nets.identity if spec == "none" else rms, width=1024, n=32, seed=s) for s in (0, 1, 2)]
    said = predict(spec, depth=20, width=1024)
    for depth in (5, 10, 20):
        seen = mean(r.cosines[depth - 1] for r in runs)
        assert seen == pytest.approx(cosine_by_depth(depth)[-1], abs=0.02)
        assert said.cosines[depth - 1] == pytest.approx(cosine_by_depth(depth)[-1], abs=0.005)


def test_batch_norm_mlp():
    cosine, rate = measured(nets.mlp, nets.batch)
    said = predict("batch", depth=20, batch_size=64)
    for c, r in ((cosine, rate), (said.cosine, said.rate)):
        assert 0.30 <= c <= 0.33
        assert 1.19 <= r <= 1.25
    assert said.cosine == pytest.approx(cosine, abs=0.01)
    assert said.rate == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("batch", [8, 16, 64])
def test_batch_norm_rate_follows_the_finite_set_law(batch):
    _, rate = measured(nets.mlp, nets.batch, seeds=range(4), n=batch)
    assert rate == pytest.approx(float(finite_set_rate(batch)), rel=0.05)
    assert predict("batch", depth=20, batch_size=batch).rate == pytest.approx(rate, rel=0.05)


def test_small_batches_lower_the_cosine_of_batch_norm():
    table = {4: 0.164, 6: 0.224, 8: 0.252, 16: 0.284, 32: 0.305, 64: 0.313, 128: 0.319, 256: 0.321}
    for batch, cosine in table.items():
        assert predict("batch", depth=20, batch_size=batch).cosine == pytest.approx(cosine, abs=0.015)


def test_unnormalized_and_weight_normalized_nets():
    cosine, rate = measured(nets.conv_net, nets.identity)
    said = on_maps("none")
    assert said.cosine == pytest.approx(cosine, abs=0.03)
    assert said.rate == pytest.approx(1.0, abs=1e-9)
    assert rate == pytest.approx(1.0, abs=0.015)
    assert on_maps("sws").cosine == pytest.approx(1 / math.pi, abs=0.01)
    assert on_maps("sws").rate == pytest.approx(1.2112, abs=1e-3)


def test_zero_padding_makes_unnormalized_nets_vanish():
    side = [32] * 5 + [16] * 5 + [8] * 5 + [4] * 5
    positions = [s * s for s in side]
    zeros, circular = (predict("none", depth=20, positions=positions, padding=p) for p in ("zeros", "circular"))
    assert zeros.growth == "vanishing"
    assert zeros.second_moments[-1] < 0.2
    assert circular.growth == "constant"
    assert circular.second_moments == pytest.approx([1.0] * 20)


def test_instance_norm_looks_informative_until_it_is_pooled():
    said = predict("instance", depth=20, width=64, positions=1024)
    assert said.cosine < 0.4
    assert said.cosine_pooled > 0.99
    assert predict("batch", depth=20, positions=4, batch_size=32).cosine_pooled < 0.8


def test_pooled_cosine_of_convolutional_nets():
    for spec, norm in (("instance", nets.group(1)), ("batch", nets.batch)):
        seen = mean(nets.conv_net(norm, seed=s).pooled[-1] for s in (0, 1))
        assert on_maps(spec).cosine_pooled == pytest.approx(seen, abs=0.02)


def test_width_does_not_matter_at_a_given_group_size():
    cosines = [predict("group:size=4", depth=20, width=w, positions=64).cosine for w in (32, 64, 256, None)]
    assert max(cosines) - min(cosines) < 1e-9


def test_depth_reads_off_the_same_run():
    long, short = on_maps("group:size=8", depth=20), on_maps("group:size=8", depth=7)
    assert short.cosines == long.cosines[:7]


def test_a_schedule_of_widths_and_maps():
    widths, positions = [32] * 4 + [64] * 4, [256] * 4 + [64] * 4
    said = predict("group:groups=32", depth=8, width=widths, positions=positions)
    first = predict("instance", depth=4, positions=256)
    assert said.cosines[:4] == first.cosines
    assert said.cosines[-1] > first.cosines[-1]


def test_a_thousand_configurations_take_less_than_two_seconds():
    norms = ["none", "batch", "layer", "instance", "frn", "sws"] + [f"group:size={g}" for g in (2, 4, 8, 16)]
    asked = [
        Configuration(norm, depth, width, positions, batch)
        for norm in norms
        for depth in (10, 20, 40, 50, 56)
        for width in (64, 128)
        for positions in (16, 49, 64, 256, 1024)
        for batch in (8, 32)
    ]
    assert len(asked) == 1000
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        said = predict_many(asked)
        best = min(best, time.process_time() - start)
    assert best < 2.0
    assert all(p.cosine is not None for p in said)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["group:size=4", "layer", "frn", "none", "batch"]), st.integers(1, 12), st.integers(16, 400))
def test_many_is_one_by_one(norm, depth, positions):
    asked = Configuration(norm, depth, 64, positions, 8)
    together = predict_many([Configuration("group:size=16", 5, 64, 100), asked, Configuration("batch", 9, 64, 64, 8)])
    alone = predict(norm, depth=depth, width=64, positions=positions, batch_size=8)
    assert together[1].cosines == pytest.approx(alone.cosines, abs=1e-5)


def test_what_is_not_covered_is_none_with_a_reason():
    said = predict("evonorm-s0", depth=10, positions=64)
    assert said.cosine is None
    assert said.rate is None
    assert "EvoNorm" in said.why("rate")
    assert "no recursion is known" in predict("mine", depth=3).why("cosines")
    assert "batch size" in predict("batch", depth=10).why("cosines")
    assert "3 elements" in predict("batch", depth=10, batch_size=3).why("rate")
    assert "1 elements" in predict("instance", depth=10, positions=1).why("cosines")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"depth": 0}, "depth must be at least 1"),
        ({"depth": 3, "positions": [4, 4]}, "positions has 2 entries for 3 layers"),
        ({"depth": 3, "width": 0}, "width must be at least 1"),
        ({"depth": 3, "topology": "pots"}, "did you mean 'post'"),
        ({"depth": 3, "input_cosine": 2.0}, "input_cosine must lie in"),
        ({"depth": 3, "batch_size": 0}, "batch_size must be at least 1"),
        ({"depth": 3, "padding": "zero"}, "did you mean 'zeros'"),
    ],
)
def test_bad_input(kwargs, words):
    with pytest.raises(LayerscopeError, match=words.replace("[", r"\[")):
        predict("group:size=8", **kwargs)


@pytest.mark.parametrize("spec", ["group", "group:size=8,groups=2", "group:size=0", "group:size=x"])
def test_bad_group_specs(spec):
    with pytest.raises(SpecError):
        predict(spec, depth=3)


def test_every_norm_of_the_package_is_covered_or_has_a_reason():
    norms = pytest.importorskip("layerscope.norms")
    for name in norms.names():
        info = norms.info(name)
        said = predict(info.example or name, depth=4, width=64, positions=64, batch_size=16)
        assert (said.cosine is not None) == (name in covered())
        assert (said.cosine is None) == bool(said.why("cosines"))


def test_importing_it_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, layerscope.theory as t; t.predict('layer', depth=3); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
