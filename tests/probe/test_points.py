"""Which modules are watched, and what role each one is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from layerscope import norms
from layerscope.probe import profile
from layerscope.probe.network import open_network
from layerscope.probe.points import find_points, is_block, role_of, role_of_function
from probe.problems import ResidualBlock, residual


@pytest.mark.parametrize(
    ("module", "role"),
    [
        (nn.Conv1d(1, 1, 1), "conv"),
        (nn.ConvTranspose2d(1, 1, 1), "conv"),
        (nn.Linear(1, 1), "linear"),
        (nn.SyncBatchNorm(2), "norm"),
        (nn.RMSNorm(2), "norm"),
        (nn.GroupNorm(1, 2), "norm"),
        (nn.PReLU(), "activation"),
        (nn.Softmax(1), "activation"),
        (nn.GLU(), "activation"),
        (nn.AdaptiveAvgPool2d(1), "pool"),
        (nn.MultiheadAttention(4, 2), "attention"),
        (nn.Flatten(), "other"),
    ],
)
def test_roles(module: nn.Module, role: str) -> None:
    assert role_of(module) == role


@pytest.mark.parametrize("name", norms.names())
def test_every_norm_of_the_zoo_has_a_role_in_its_slot(name: str) -> None:
    """Where a recipe has a norm, it is recorded as one; where it owns the activation, as an activation."""
    spec = {"group": "group:size=4", "ws-group": "ws-group:size=4"}.get(name, name)
    recipe = norms.recipe(spec)
    norm, activation = recipe.norm(8), recipe.activation(8)
    if not isinstance(norm, nn.Identity):
        assert role_of(norm) == "norm"
    assert role_of(activation) == "activation"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("relu_", "activation"),
        ("conv2d", "conv"),
        ("linear", "linear"),
        ("layer_norm", "norm"),
        ("max_pool2d", "pool"),
        ("scaled_dot_product_attention", "attention"),
        ("add", "op"),
    ],
)
def test_roles_of_functions(name: str, role: str) -> None:
    assert role_of_function(name) == role


def test_blocks_by_class_name() -> None:
    assert is_block(ResidualBlock(4))
    assert is_block(nn.TransformerEncoderLayer(4, 2))
    assert not is_block(nn.Sequential(nn.Linear(1, 1)))


def test_leaves_and_blocks_in_order() -> None:
    points = find_points(open_network(residual()))
    assert [p.path for p in points][:9] == ["0", "1", "2", "3", "3.conv1", "3.norm1", "3.conv2", "3.norm2", "3.act"]
    assert {p.path for p in points if p.role == "block"} == {"3", "5"}
    assert all(p.block == "3" for p in points if p.path.startswith("3."))


def test_a_network_of_one_layer() -> None:
    seen = profile(nn.Linear(4, 3), torch.randn(5, 4))
    assert [r.name for r in seen.records] == ["Linear"]
    assert seen.classifier == "Linear"


def test_shared_module_is_watched_once_and_recorded_at_every_call() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 3))
    seen = profile(model, torch.randn(5, 4))
    assert [r.name for r in seen.records] == ["0", "1", "0#2", "3"]
    assert seen["0"].weight_grad == seen["0#2"].weight_grad


def test_parametrized_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))
    seen = profile(model, torch.randn(5, 4))
    assert [r.name for r in seen.records] == ["0", "1", "2"]
    assert seen["0"].kind == "Linear"
    assert seen["0"].weight_grad is not None


def test_fused_norm_and_activation_are_two_call_sites() -> None:
    class NormAct(nn.BatchNorm2d):
        """The form such classes have in model zoos."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.drop(super().forward(x)))
            return out

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.Flatten(), nn.Linear(144, 3))
    seen = profile(model, torch.randn(6, 3, 8, 8), level="deep")
    assert [(r.name, r.role) for r in seen.records][:3] == [("0", "conv"), ("1", "norm"), ("1.act", "activation")]
    assert seen["1"].ms == pytest.approx(1, abs=1e-3)
    assert seen["1"].mean == pytest.approx(0, abs=1e-6)
    assert seen["1.act"].ms == pytest.approx(0.5, abs=0.1)


def test_an_activation_made_of_modules_is_one_call_site() -> None:
    class ScaledActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = 2 * self.base(x)
            return out

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 50), ScaledActivation(), nn.Linear(50, 3)), torch.randn(5, 4)
    seen = profile(model, x)
    assert [(r.name, r.role) for r in seen.records] == [("0", "linear"), ("1", "activation"), ("2", "linear")]
    assert seen["1"].ms == pytest.approx(float(4 * model[0](x).relu().square().mean().detach()), rel=1e-5)


def test_a_wrapper_that_normalizes_around_a_branch_is_looked_into() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fn = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fn(self.norm(x))
            return out

    seen = profile(nn.Sequential(PreNorm(), nn.Linear(4, 3)), torch.randn(5, 4))
    assert [r.name for r in seen.records] == ["0.norm", "0.fn", "1"]
