"""The rules on made-up profiles whose verdict is known by construction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.errors import ProbeError
from layerscope.probe.records import LayerRecord, Profile
from layerscope.verdict import Thresholds, judge
from layerscope.verdict.axes import inactive_branches, tail_factor
from layerscope.verdict.sets import smallest_set
from layerscope.verdict.trunk import trunk


def block(index: int, ms: float, *, cosine: float = 0.5, grad: float = 1.0, channels: int = 16) -> LayerRecord:
    return LayerRecord(index, f"blocks.{index}", "ResidualBlock", "block", "conv", (32, channels, 8, 8),
                       ms=ms, cosine=cosine, grad_scaled=grad, residual=True)  # fmt: skip


def conv(index: int, *, grad: float = 1.0) -> LayerRecord:
    return LayerRecord(index, f"conv{index}", "Conv2d", "conv", "conv", (32, 16, 8, 8), ms=1.0, grad_scaled=grad)


def act(index: int, *, ms: float = 0.5, cosine: float = 0.5) -> LayerRecord:
    return LayerRecord(index, f"act{index}", "ReLU", "activation", "conv", (32, 16, 8, 8), ms=ms, cosine=cosine)


def a_profile(records: list[LayerRecord], **changes: object) -> Profile:
    base = Profile("net", "batch", tuple(records), "standard", 32, 1, (1, 8, 8), 0, 2.3, "head",
                   readout_cosine=0.6, readout_cosine_unpooled=0.5, batch_noise=0.0)  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def residual(ms: list[float], **changes: object) -> Profile:
    return a_profile([block(i, m) for i, m in enumerate(ms)], **changes)


def plain(depth: int = 10, rate: float = 1.0, **changes: object) -> Profile:
    records = [r for i in range(depth) for r in (conv(i, grad=rate ** (depth - i)), act(i))]
    return a_profile(records, **changes)


def test_a_healthy_plain_net() -> None:
    verdict = judge(plain(), analytic=False)
    assert verdict.label == "healthy"
    assert verdict.remedies == ()
    assert [a.level for a in verdict.axes] == ["good"] * 4


def test_doubling_at_every_block_fails_and_names_the_first_bad_block() -> None:
    verdict = judge(residual([2.0**i for i in range(9)]), analytic=False)
    assert verdict.label == "fails"
    assert verdict.where == "blocks.4"  # the first one beyond ten times the first block
    assert "x2.00 per block" in verdict.reason
    assert verdict.remedies[0].startswith("SkipInit")


def test_a_linear_law_is_stable_however_long() -> None:
    for length in (9, 27, 100):
        verdict = judge(residual([1.0 + i for i in range(length)]), analytic=False)
        assert verdict.label == "healthy", verdict.reason


def test_five_blocks_that_double_fail_and_five_that_add_do_not() -> None:
    assert judge(residual([1.0, 2.0, 4.0, 8.0, 16.0]), analytic=False).label == "fails"
    assert judge(residual([1.0, 2.0, 3.0, 4.0, 5.0]), analytic=False).label == "healthy"
    # too few to show a law, and too little growth to do harm
    assert judge(residual([1.0, 2.0, 4.0, 8.0]), analytic=False).label == "healthy"
    assert judge(residual([1.0, 4.0, 16.0, 64.0]), analytic=False).label == "fails"


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-6, 1e6), st.floats(1.1, 3.0))
def test_the_scale_of_the_signal_does_not_matter(scale: float, factor: float) -> None:
    series = [factor**i for i in range(9)]
    plain_scale = judge(residual(series), analytic=False)
    rescaled = judge(residual([scale * m for m in series]), analytic=False)
    assert plain_scale.label == rescaled.label
    assert plain_scale.where == rescaled.where


def test_a_reset_at_every_stage_is_not_vanishing() -> None:
    stage = [1.0 + i for i in range(9)]
    records = [block(i, m, channels=16 * (1 + i // 9)) for i, m in enumerate(stage * 3)]
    assert judge(a_profile(records), analytic=False).label == "healthy"


def test_a_vanished_signal_fails() -> None:
    verdict = judge(residual([10.0 ** (-i) for i in range(12)]), analytic=False)
    assert verdict.label == "fails"
    assert "vanishes" in verdict.reason


def test_nonfinite_activations_fail_at_their_first_layer() -> None:
    records = [block(0, 1.0), replace(block(1, math.nan), nonfinite_share=0.5), block(2, math.nan)]
    verdict = judge(a_profile(records, loss=math.nan), analytic=False)
    assert (verdict.label, verdict.where) == ("fails", "blocks.1")


@pytest.mark.parametrize(
    ("nu", "label"), [(0.0, "healthy"), (0.8, "healthy"), (3.1, "healthy"), (12.5, "unstable"), (math.nan, "unstable")]
)
def test_batch_noise(nu: float, label: str) -> None:
    verdict = judge(plain(batch_noise=nu), analytic=False)
    assert verdict.label == label
    if label == "unstable":
        assert any("larger batch" in r for r in verdict.remedies)


def test_exploding_gradients_are_unstable_in_a_plain_net_and_only_noted_on_a_stream() -> None:
    steep = plain(20, 1.3)  # 1.3^19 = 146
    verdict = judge(steep, analytic=False)
    assert verdict.label == "unstable"
    assert "first/last" in verdict.reason
    stream = [replace(block(i, 1.0), grad_scaled=1.3 ** (20 - i)) for i in range(20)]
    assert judge(a_profile(stream), analytic=False).label == "healthy"


def test_vanishing_gradients_are_very_slow() -> None:
    assert judge(plain(20, 0.5), analytic=False).label == "very slow"


@pytest.mark.parametrize(
    ("cosine", "last_map", "pooled"),
    [
        (0.7, "healthy", "healthy"),
        (0.93, "slow", "healthy"),  # pooling brings all samples together
        (0.975, "very slow", "healthy"),
        (0.985, "very slow", "slow"),
        (0.995, "very slow", "very slow"),
    ],
)
def test_similar_samples_are_slow_wherever_the_similarity_shows(cosine: float, last_map: str, pooled: str) -> None:
    assert judge(plain(readout_cosine_unpooled=cosine), analytic=False).label == last_map
    assert judge(plain(readout_cosine=cosine), analytic=False).label == pooled
    # nothing is pooled, or only one of the two is known: the limits of the last map
    same = {"readout_cosine": cosine, "readout_cosine_unpooled": cosine}
    assert judge(plain(**same), analytic=False).label == last_map
    assert judge(plain(**{**same, "readout_cosine_unpooled": None}), analytic=False).label == last_map


def test_the_limit_of_batch_noise_is_a_multiple_of_the_batch_size() -> None:
    for size in (4, 16, 64):
        low, high = (judge(plain(batch_noise=nu * size, batch_size=size), analytic=False) for nu in (0.3, 0.4))
        assert (low.label, high.label) == ("healthy", "unstable")


def test_a_long_chain_of_batch_norms_may_grow_by_its_own_law() -> None:
    law = math.sqrt(math.pi / (math.pi - 1))
    for depth in (10, 20, 30, 40):
        assert judge(plain(depth, law), analytic=False).label == "healthy"
    assert judge(plain(30, 1.3), analytic=False).label == "unstable"
    assert judge(plain(60, law), analytic=False).label == "unstable"  # beyond any: 1.21^59 = 8e4


def stream_of_tokens(cosines: list[float]) -> Profile:
    records = [
        LayerRecord(i, f"blocks.{i}", "Block", "block", "token", (32, 9, 16),
                    ms=1.0, cosine=0.5 + i / 100, cosine_token=c, grad_scaled=1.0, residual=True)
        for i, c in enumerate(cosines)
    ]  # fmt: skip
    return a_profile(records)


@pytest.mark.parametrize(
    ("cosines", "pooled", "every"),
    [
        ([0.1, 0.3, 0.5, 0.6], "healthy", "healthy"),
        ([0.1, 0.4, 0.6, 0.8], "healthy", "healthy"),
        ([0.1, 0.5, 0.8, 0.9], "healthy", "very slow"),
        ([0.88, 0.89, 0.9, 0.92], "healthy", "healthy"),  # alike from the start, and hardly more so at the end
        ([0.86, 0.92, 0.96, 0.98], "healthy", "very slow"),
        ([0.45, 0.9, 0.99, 0.999], "very slow", "very slow"),
    ],
)
def test_tokens_that_become_alike_are_told_from_tokens_that_are(cosines: list[float], pooled: str, every: str) -> None:
    means = stream_of_tokens(cosines)
    tokens = replace(means, readout_cosine=None, readout_cosine_unpooled=None)
    assert (judge(means, analytic=False).label, judge(tokens, analytic=False).label) == (pooled, every)


def test_gradients_that_are_nothing_beside_their_weights_fail() -> None:
    def weighing(gradient: float, **changes: object) -> Profile:
        records = [
            replace(r, weight_norm=1.0, weight_grad=gradient) if r.role == "conv" else r for r in plain().records
        ]
        return plain(**changes) if gradient == 0 else replace(a_profile(records), **changes)  # type: ignore[arg-type]

    verdict = judge(weighing(1e-7), analytic=False)
    assert verdict.label == "fails"
    assert "moves no weight" in verdict.reason
    assert any("pooled" in r for r in verdict.remedies)
    assert judge(weighing(1e-3), analytic=False).label == "healthy"
    # a trained network has little left to move
    assert judge(weighing(1e-7, loss=1e-4), analytic=False).label == "healthy"


def test_inactive_branches_are_not_called_slow() -> None:
    stream = residual([0.3] * 6, readout_cosine=0.95)
    assert inactive_branches(trunk(stream))
    assert judge(stream, analytic=False).label == "healthy"
    assert not inactive_branches(trunk(residual([0.3, 0.31, 0.33])))


def test_instance_norm_over_two_pixels_is_unstable() -> None:
    record = LayerRecord(0, "norm0", "InstanceNorm2d", "norm", "conv", (32, 16, 1, 2))
    verdict = judge(replace(plain(norm="instance"), records=(record, *plain().records)), analytic=False)
    assert verdict.label == "unstable"
    assert "2 elements" in verdict.reason


@pytest.mark.parametrize(
    ("norm", "kind", "size"),
    [("as is", "BatchNorm2d", 32 * 4), ("batch", "Anything", 32 * 4), ("instance", "X", 4), ("group:size=8", "X", 32),
     ("group:groups=4", "X", 16), ("ghost:size=2", "X", 8)],
)  # fmt: skip
def test_statistic_set_sizes(norm: str, kind: str, size: int) -> None:
    record = LayerRecord(0, "n", kind, "norm", "conv", (32, 16, 2, 2))
    found = smallest_set(a_profile([record], norm=norm))
    assert found is not None
    assert found[0] == size


def test_unknown_is_a_value_with_a_reason() -> None:
    verdict = judge(a_profile([]), analytic=False)
    assert verdict.label == "unknown"
    assert "no layer" in verdict.reason


def test_profiles_of_different_choices_are_refused() -> None:
    with pytest.raises(ProbeError, match="different choices"):
        judge([plain(), plain(norm="layer")])
    with pytest.raises(ProbeError, match="at least one"):
        judge([])


def test_spread_over_seeds_is_half_the_range() -> None:
    verdict = judge([plain(readout_cosine=c) for c in (0.6, 0.7, 0.8)], analytic=False)
    axis = verdict.axis("I")
    assert axis is not None
    assert axis.value == pytest.approx(0.3)
    assert axis.spread == pytest.approx(0.1)


def test_thresholds_can_be_set() -> None:
    assert judge(plain(), thresholds=Thresholds(informative_caution=0.6), analytic=False).label == "slow"


def test_tail_factor_of_known_laws() -> None:
    assert tail_factor(trunk(residual([2.0**i for i in range(9)]))) == pytest.approx(2.0)
    assert tail_factor(trunk(residual([1.0 + i for i in range(9)]))) == pytest.approx((9 / 5) ** 0.25)


def test_a_cosine_just_below_one_is_not_written_as_one() -> None:
    assert "cosine 0.9997 " in judge(plain(readout_cosine=0.9997), analytic=False).reason
