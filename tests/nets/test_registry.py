"""Building any network with any norm: it runs, its gradients are finite, and its weights come from the seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope import nets, norms
from layerscope.errors import LayerscopeError, SourceError, SpecError

NORMS = tuple(norms.info(name).example or name for name in norms.names())
#: Every kind of network, small; parameter count does not matter here, wiring does.
SPECS = (
    "cfg_10:width=8",
    "uniform:width=8,depth=3",
    "plain:width=8,depth=6",
    "vgg:width=8,depth=5",
    "resnet20:width=8",
    "resnet20:width=8,preact=true,final_norm=true",
    "resnet20:width=8,branch_act=true,skipinit=true",
    "resnet:width=8,blocks=1",
    "mlp:width=64,depth=3",
    "vit:width=16,depth=2,patch=2",
    "vit:width=16,depth=2,patch=2,placement=post,branch=deepnorm,qk_norm=true,act=relu",
    "vit:width=16,depth=2,patch=2,placement=peri,branch=layerscale",
    "mixer:width=16,depth=2,patch=2,placement=peri",
    "convnext:width=8,blocks=1,grn=true,layerscale=true",
)
#: (norm, network) without meaning, and a word that the refusal owes the user.
UNDEFINED = {
    ("instance", "mlp"): "positions",
    ("switchable", "mlp"): "positions",
    **{(norm, net): "activation" for norm in ("evonorm-b0", "evonorm-s0") for net in ("vit", "mixer", "convnext")},
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spec", SPECS)
def test_every_norm_runs_in_every_net_with_finite_gradients(spec: str, norm: str) -> None:
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 3
    if says := UNDEFINED.get((norm.partition(":")[0], spec.partition(":")[0])):
        with pytest.raises(LayerscopeError, match=says):
            nets.build(spec, norm, in_shape=(1, 8, 8), classes=3)(x)
        return
    net = nets.build(spec, norm, in_shape=(1, 8, 8), classes=3)
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert net.eval()(x).shape == (6, 3)


@pytest.mark.parametrize(
    "spec", ["cfg_10:width=4", "resnet20:width=4", "mlp:width=8", "vit:width=8,patch=2,heads=2", "convnext:width=4"]
)
def test_weights_come_from_the_seed_alone(spec: str) -> None:
    def weights(seed: int, norm: str = "layer") -> dict[str, torch.Tensor]:
        net = nets.build(spec, norm, in_shape=(1, 8, 8), seed=seed)
        return {k: v for k, v in net.state_dict().items() if v.ndim > 1 or "head" in k}

    first, second, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if first[k].std() > 0)
    # and not from the norm, so that a comparison of norms compares norms
    without = weights(1, "none")
    assert all(torch.equal(first[k], without[k]) for k in without)


def test_the_global_generators_stay_as_they_are() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for spec in ("resnet20:width=4", "vit:width=8,heads=2", "mlp:width=8"):
        nets.build(spec, in_shape=(1, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_builds_after_different_draws_are_equal() -> None:
    torch.manual_seed(5)
    first = nets.build("resnet20:width=4", in_shape=(1, 8, 8)).state_dict()
    torch.rand(3)
    second = nets.build("resnet20:width=4", in_shape=(1, 8, 8)).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_network_comes_in_training_mode_on_the_cpu() -> None:
    net = nets.build("resnet20:width=4")
    assert net.training
    assert {p.device.type for p in net.parameters()} == {"cpu"}


@pytest.mark.parametrize("classes", [0, -1, 2.5, True, "ten"])
def test_classes_must_be_a_number_of_outputs(classes: object) -> None:
    with pytest.raises(SourceError, match="classes"):
        nets.build("mlp:width=4", classes=classes)


def test_an_unknown_norm_is_named_with_its_neighbours() -> None:
    with pytest.raises(SpecError, match="batch"):
        nets.build("resnet20:width=4", "bach")
