import math

import pytest
import torch
from torch import nn

from layerscope import nets
from layerscope.errors import SpecError
from layerscope.study import execute
from layerscope.study.initial import check, reinitialize
from layerscope.study.trial import Trial


def net(norm="batch"):
    return nets.build("plain:depth=4,width=32", norm, in_shape=(1, 16, 16), classes=10, seed=0)


def test_as_built_changes_nothing():
    module = net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    reinitialize(module, "as-built", 3)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("he-normal", math.sqrt(2)),
        ("he-normal:gain=0.5", math.sqrt(0.5)),
        ("he-uniform", math.sqrt(2)),
        ("lecun-normal", 1.0),
    ],
)
def test_variance_times_fan_in(init, std):
    layer = nn.Linear(300, 400)
    reinitialize(layer, init, 0)
    assert float(layer.weight.detach().std()) * math.sqrt(300) == pytest.approx(std, rel=0.02)


def test_orthogonal_keeps_lengths_up_to_the_relu_gain():
    layer = nn.Linear(64, 64)
    reinitialize(layer, "orthogonal", 0)
    weight = layer.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(64), atol=1e-4, rtol=1e-4)


def test_only_weights_of_the_body_change_and_the_seed_alone_decides():
    first, second, other = net(), net(), net()
    state = torch.random.get_rng_state()
    reinitialize(first, "he-normal", 5)
    reinitialize(second, "he-normal", 5)
    reinitialize(other, "he-normal", 6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    fresh = dict(net().named_parameters())
    changed = {k for k, v in first.named_parameters() if not torch.equal(v, fresh[k])}
    assert len(changed) == 4
    assert all(k.endswith("conv.weight") for k in changed)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_weights_behind_a_parametrization_are_drawn_there():
    module = net("weight")
    before = {k: v.clone() for k, v in module.named_parameters()}
    reinitialize(module, "he-normal", 5)
    changed = {k for k, v in module.named_parameters() if not torch.equal(v, before[k])}
    assert changed
    assert all("original" in k for k in changed)
    assert module(torch.randn(2, 1, 16, 16)).isfinite().all()


@pytest.mark.parametrize("init", ["he", "he-normal:std=1", "he-normal:gain=0", "he-normal:gain=x", "as-built:gain=1"])
def test_bad_schemes(init):
    with pytest.raises(SpecError):
        check(init)


def test_depth_and_init_are_arguments_of_the_training_trial():
    params = {"norm": "none", "net": "plain:width=8", "steps": 3, "batch_size": 16}
    plain, deep, orthogonal = (
        execute(Trial.of("layerscope.study.trials:probe_and_train", {**params, **more}))
        for more in ({"depth": 3}, {"depth": 6}, {"depth": 3, "init": "orthogonal"})
    )
    assert plain.state == deep.state == orthogonal.state == "done", (plain.trace, deep.trace, orthogonal.trace)
    assert deep.result["parameters"] > plain.result["parameters"] == orthogonal.result["parameters"]
    assert orthogonal.result["curve"] != plain.result["curve"]
