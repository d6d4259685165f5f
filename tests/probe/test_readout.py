"""The classifier input, before and after pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerscope import quantities as q
from layerscope.probe import profile
from probe.problems import PROBLEMS, Transformer, mlp, residual


def test_pooled_and_unpooled_features_of_a_convolutional_network() -> None:
    model, x, y = PROBLEMS[0].build(8)
    seen = profile(model, (x, y))
    features: dict[str, Tensor] = {}
    model[-1].register_forward_hook(lambda m, args, out: features.update(z=args[0].detach().clone()))
    model[-4].register_forward_hook(lambda m, args, out: features.update(map=out.detach().clone()))
    model.train()(x)
    z = features["z"]
    assert seen.classifier == "8"
    assert seen.readout_cosine == pytest.approx(float(q.mean_cosine(z)))
    assert seen.readout_cosine_unpooled == pytest.approx(float(q.mean_cosine(features["map"].flatten(1))))
    assert seen.readout_spread == pytest.approx(float(q.relative_spread(z)))
    centred = q.eigenvalues(q.centred_gram(q.cosine_gram(z)))
    assert seen.readout_effective_rank == pytest.approx(float(q.effective_rank(centred)))


def test_token_network() -> None:
    torch.manual_seed(0)
    seen = profile(Transformer(), torch.randn(6, 7, 6))
    assert seen.classifier == "head"
    assert (
        seen.readout_cosine_unpooled == seen["norm"].cosine or seen.readout_cosine_unpooled == seen["layers.1"].cosine
    )
    assert seen["layers.0.attention"].layout == "token"


def test_nothing_is_pooled_in_a_perceptron() -> None:
    torch.manual_seed(0)
    seen = profile(mlp(), torch.randn(8, 6))
    assert seen.readout_cosine == pytest.approx(seen["4"].cosine, abs=1e-6)
    assert seen.readout_cosine_unpooled == seen.readout_cosine


def test_the_head_is_the_layer_whose_result_is_the_output() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.main, self.auxiliary = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.body(x).relu()
            return {"logits": self.main(h), "aux": self.auxiliary(h)}

    torch.manual_seed(0)
    assert profile(TwoHeads(), torch.randn(5, 6)).classifier == "main"


def test_no_linear_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen = profile(model, torch.randn(4, 3, 8, 8))
    assert seen.classifier is None
    assert seen.readout_cosine is None
    assert any("no linear layer" in note for note in seen.warnings)


def test_instance_norm_hides_everything_from_the_classifier() -> None:
    """IN + ReLU + average pooling: maps of standardized channels all have the same mean."""
    torch.manual_seed(0)

    def net(norm: type[nn.Module]) -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1, bias=False), norm(32), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-3].weight)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))

    x = torch.randn(16, 3, 12, 12)
    instance, batch = profile(net(nn.InstanceNorm2d), x), profile(net(nn.BatchNorm2d), x)
    assert instance.readout_cosine is not None
    assert instance.readout_cosine > 0.99
    assert instance.readout_cosine_unpooled is not None
    assert instance.readout_cosine_unpooled < 0.7
    assert batch.readout_cosine is not None
    assert batch.readout_cosine < instance.readout_cosine


def test_residual_network_is_read_at_its_last_map() -> None:
    torch.manual_seed(0)
    seen = profile(residual(), torch.randn(6, 3, 8, 8))
    assert seen.readout_cosine_unpooled == pytest.approx(seen["5"].cosine)
