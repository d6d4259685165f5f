"""The main job through its Python door."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import layerscope
from layerscope.errors import LayerscopeError, SourceError, SpecError

DATA = "digits:size=16"


@pytest.fixture(scope="module")
def residual() -> layerscope.Comparison:
    norms = ["none", "weight", "sws", "batch", "layer", "group:size=8", "evonorm-b0"]
    return layerscope.compare("resnet56:width=16", norms, DATA, batch_size=32)


@pytest.mark.parametrize("norm", ["none", "weight", "sws"])
def test_what_keeps_no_statistics_fails_in_a_deep_residual_net(residual: layerscope.Comparison, norm: str) -> None:
    verdict = residual[norm].verdict
    assert verdict.label == "fails"
    assert "explode" in verdict.reason
    assert verdict.where
    assert verdict.remedies[0].startswith("SkipInit")


def test_what_divides_by_activation_statistics_does_not(residual: layerscope.Comparison) -> None:
    for norm in ("batch", "layer", "group:size=8", "evonorm-b0"):
        assert residual[norm].verdict.label != "fails"


def test_layer_norm_and_large_groups_are_slow_and_batch_norm_is_not(residual: layerscope.Comparison) -> None:
    assert residual["layer"].verdict.label in ("slow", "very slow")
    assert residual["batch"].verdict.label == "healthy"


def test_the_ranking_puts_the_best_verdict_first(residual: layerscope.Comparison) -> None:
    assert residual.ranking()[0].verdict.label == "healthy"
    assert residual.ranking()[-1].verdict.label == "fails"


def test_instance_norm_is_named_in_a_plain_net() -> None:
    verdict = layerscope.compare("cfg_20:width=16", "instance", "digits:size=32")["instance"].verdict
    assert verdict.label in ("unstable", "very slow")
    assert "gradient" in verdict.reason or "pooling" in verdict.reason


def test_batch_norm_gets_worse_at_batch_size_4_because_of_batch_noise() -> None:
    verdicts = [layerscope.compare("cfg_20:width=16", "batch", DATA, batch_size=b)["batch"].verdict for b in (4, 32)]
    noise = [v.axis("N") for v in verdicts]
    assert noise[0] is not None
    assert noise[1] is not None
    assert (noise[0].value or 0) > 2 * (noise[1].value or 0)
    assert verdicts[0].label == "unstable"
    assert "batch noise" in verdicts[0].reason.lower()
    assert verdicts[1].label != "unstable"


def test_a_thousand_times_the_input_gives_the_same_verdicts() -> None:
    x, y = layerscope.batch(DATA, 32)
    norms = ["none", "batch", "layer", "instance", "group:size=8", "sws"]
    for net in ("resnet20:width=16", "cfg_10:width=16"):
        before = layerscope.compare(net, norms, (x, y), batch_size=32)
        after = layerscope.compare(net, norms, (1000 * x, y), batch_size=32)
        assert [c.verdict.label for c in before.choices] == [c.verdict.label for c in after.choices]


def test_a_users_own_module_is_swapped_on_a_copy() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    before = copy.deepcopy(net.state_dict())
    kinds = [type(m) for m in net]
    result = layerscope.compare(net, ["as is", "group:size=4", "layer"], "digits")
    assert [type(m) for m in net] == kinds
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [c.norm for c in result.choices] == ["as is", "group:size=4", "layer"]
    assert all(c.profiles for c in result.choices)


def test_one_impossible_choice_does_not_cost_the_others() -> None:
    result = layerscope.compare("resnet20:width=10", ["group:size=7", "batch"], DATA, batch_size=8)
    assert result["group:size=7"].verdict.label == "unknown"
    assert "7" in result["group:size=7"].verdict.reason
    assert result["batch"].profiles


def test_what_costs_every_choice_is_the_error_itself() -> None:
    with pytest.raises(SourceError, match=r"^there is no file 'nowhere.py'"):
        layerscope.compare("nowhere.py:make", ["batch", "layer"], DATA, batch_size=8)


def test_aliases_and_repeats_are_one_choice() -> None:
    result = layerscope.compare("resnet20:width=8", ["bn", "batch"], DATA, batch_size=8)
    assert [c.norm for c in result.choices] == ["batch"]


def test_seeds_show_a_spread() -> None:
    verdict = layerscope.compare("resnet20:width=8", "batch", DATA, batch_size=8, seeds=2)["batch"].verdict
    axis = verdict.axis("I")
    assert axis is not None
    assert axis.spread is not None
    assert axis.spread > 0


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match="no norm to compare"):
        layerscope.compare("resnet20", [])
    with pytest.raises(LayerscopeError, match="seeds"):
        layerscope.compare("resnet20", "batch", seeds=0)


def test_instance_norm_hides_before_the_pooling() -> None:
    result = layerscope.compare("cfg_20", ["instance", "batch"], "digits:size=32", batch_size=32)
    instance, batch = (result[n].profiles[0] for n in ("instance", "batch"))
    assert instance.readout_cosine is not None
    assert instance.readout_cosine > 0.99
    assert instance.readout_cosine_unpooled is not None
    assert instance.readout_cosine_unpooled < 0.7
    assert batch.readout_cosine is not None
    assert batch.readout_cosine < 0.8


def test_a_norm_that_was_not_put_in_has_no_verdict() -> None:
    table = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    data = torch.randn(16, 6), torch.arange(16) % 5
    result = layerscope.compare(table, ["as is", "layer", "instance"], data, batch_size=8)
    assert result["layer"].profiles
    assert result["instance"].verdict.label == "unknown"
    assert "none of the 1 norms can become instance, such as '1'" in result["instance"].verdict.reason
    bare = nn.Sequential(nn.Linear(6, 5))
    result = layerscope.compare(bare, ["none", "layer"], data, batch_size=8)
    assert result["none"].profiles
    assert "no norm module" in result["layer"].verdict.reason


class Tiny(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_a_class_is_a_factory_and_has_as_many_seeds_as_asked_for_and_a_module_has_one() -> None:
    assert len(layerscope.diagnose(Tiny, "digits", batch_size=8, seeds=3).choices[0].profiles) == 3
    assert len(layerscope.diagnose(Tiny, "digits", batch_size=8, seeds=[4, 7, 4]).choices[0].profiles) == 2
    assert len(layerscope.diagnose(Tiny(), "digits", batch_size=8, seeds=3).choices[0].profiles) == 1


@pytest.mark.parametrize("seeds", ["ab", 1.5, [], [0.5], None])
def test_seeds_that_are_none(seeds: object) -> None:
    with pytest.raises(LayerscopeError, match="seeds is how many seeds, or which ones"):
        layerscope.diagnose(Tiny, "digits", batch_size=8, seeds=seeds)


def test_batch_norm_over_one_sample_is_unstable_and_a_norm_of_samples_is_not() -> None:
    result = layerscope.compare("cfg_10:width=16", ["batch", "group:size=8"], "digits:size=16", batch_size=1)
    assert result["batch"].verdict.label == "unstable"
    assert "instance norm in training" in result["batch"].verdict.reason
    assert "statistics" not in result["group:size=8"].verdict.reason


def test_a_network_whose_forward_was_replaced_is_not_copied() -> None:
    net = Tiny()
    net.forward = nn.Sequential.forward.__get__(net)  # type: ignore[method-assign]  # as wrappers do
    result = layerscope.compare(net, ["as is", "layer"], "digits", batch_size=8)
    assert result["as is"].profiles
    assert "forward that was replaced" in result["layer"].verdict.reason
