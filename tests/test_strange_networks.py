"""The main job on networks and inputs that no reference net looks like: a verdict, and nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import layerscope
from strange import CASES, Small, images, not_numbers, same, snapshot


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", CASES)
def test_a_profile_has_numbers_and_changes_nothing(name: str) -> None:
    model, batch, options = CASES[name]()
    before = snapshot(model)
    seen = layerscope.profile(model, batch, **options)
    assert same(snapshot(model), before)
    assert seen.records
    assert seen.loss is not None
    assert not not_numbers(seen)
    assert layerscope.judge(seen).reason


@pytest.mark.parametrize("name", sorted(set(CASES) - {"partly_scripted"}))
def test_norms_are_compared_and_nothing_is_changed(name: str) -> None:
    model, batch, options = CASES[name]()
    before = snapshot(model)
    result = layerscope.compare(model, ["as is", "group:size=4"], batch, batch_size=4, chunks=2, **options)
    assert same(snapshot(model), before)
    assert all(choice.profiles for choice in result.choices), [c.verdict.reason for c in result.choices]
    assert not any("planned without an example" in note for choice in result.choices for note in choice.notes)
    assert str(result)


def test_a_network_that_cannot_be_cut_is_probed_as_one_batch() -> None:
    model, batch, _ = CASES["graph"]()
    assert layerscope.compare(model, "as is", batch).batch_size == 20
    with pytest.raises(layerscope.LayerscopeError, match=r"different lengths .* leave batch_size out"):
        layerscope.profile(model, batch, batch_size=4)


def test_the_classifier_of_a_language_model_is_its_head() -> None:
    model, batch, _ = CASES["language_model"]()
    seen = layerscope.profile(model, batch)
    assert seen.classifier == "head"
    assert seen.readout_cosine is not None


def test_a_siamese_batch_is_read_by_channel() -> None:
    """Two views of a sample in one batch are positions of one sample: the same variance as of both batches apart."""
    model, (x, y), _ = CASES["two_views_in_one_batch"]()
    seen = layerscope.profile(model, (x, y))["body.0"]
    out = model.body[0](torch.cat([x, x.flip(3)])).detach().double()
    assert seen.shape == (8, 2 * 144, 8)
    assert seen.variance == pytest.approx(float(out.transpose(0, 1).flatten(1).var(1).mean()), rel=1e-5)


def test_lazy_layers_take_their_shapes_from_the_samples() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    batch = torch.randn(8, 3, 6, 6), torch.arange(8) % 5
    result = layerscope.compare(make, ["as is", "group:size=4"], batch, batch_size=8)
    assert all(c.profiles for c in result.choices)
    assert {r.kind for r in result["group:size=4"].profiles[0].of("norm")} == {"GroupNorm"}
    with pytest.raises(layerscope.LayerscopeError, match=r"lazy layers .* pass a function that makes it"):
        layerscope.compare(make(), "as is", batch, batch_size=8)


def test_the_meta_device_is_refused_in_one_sentence() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    for job in (
        lambda: layerscope.profile(model, torch.randn(4, 4)),
        lambda: layerscope.compare(model, ["as is", "layer"], (torch.randn(4, 4), torch.arange(4)), batch_size=4),
    ):
        with pytest.raises(layerscope.LayerscopeError, match="meta device"):
            job()
    assert len(layerscope.plan_swap(model, "layer", example=torch.randn(4, 4)).swapped) == 1


def test_a_factory_that_hands_out_one_network_again_is_refused() -> None:
    kept = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    batch = torch.randn(8, 3, 6, 6), torch.arange(8) % 5
    result = layerscope.compare(lambda: kept, ["group:size=4", "layer"], batch, batch_size=8)
    assert "the same network twice" in result["layer"].verdict.reason


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: [d], lambda d: iter([d, d])])
def test_real_steps_on_several_inputs(wrap: Any) -> None:
    model, batch, _ = CASES["tokens_with_a_mask"]()
    before = snapshot(model)
    result = layerscope.compare(model, "as is", wrap(batch), batch_size=4, chunks=2, micro_steps=3)
    assert same(snapshot(model), before)
    (micro,) = result.choices[0].verdict.micro
    assert len(micro.losses) == 3


def test_a_scripted_norm_is_refused_with_the_reason() -> None:
    model, batch, _ = CASES["partly_scripted"]()
    result = layerscope.compare(model, ["as is", "group:size=4"], batch, batch_size=4)
    assert result["as is"].profiles
    assert "scripted, which is frozen" in result["group:size=4"].verdict.reason


def test_as_many_images_as_channels_are_still_a_list_of_images() -> None:
    model, (x, y), _ = CASES["list_of_images"]()
    result = layerscope.compare(model, ["as is", "group:size=4"], (x[:3], y[:3]), batch_size=2)
    assert (result.batch_size, result.in_shape) == (3, (3, 12, 12))
    assert all(choice.profiles for choice in result.choices)


def test_layers_inside_a_transform_are_run_and_named() -> None:
    model, batch, _ = CASES["mapped_over_samples"]()
    seen = layerscope.profile(model, batch)
    assert "each" not in {record.name for record in seen.records}
    assert any("'each' ran inside a torch.func transform" in note for note in seen.warnings)


def test_weights_outside_of_any_layer_get_a_gradient() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.norm = nn.Parameter(torch.randn(8, 20) / 4), nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(x @ self.w.T)) @ self.w

    x = torch.randn(8, 20)
    assert not any("no gradient" in note for note in layerscope.profile(Net(), (x, x), loss="mse").warnings)


@pytest.mark.parametrize("net", [nn.GRU(5, 12, 2, batch_first=True), nn.LayerNorm(5), nn.Embedding(9, 5)])
def test_one_layer_is_too_few_and_not_frozen(net: nn.Module) -> None:
    x = torch.randint(9, (8, 7)) if isinstance(net, nn.Embedding) else torch.randn(8, 7, 5)
    reason = layerscope.judge(layerscope.profile(net, x)).reason
    assert "fewer than two layers" in reason
    assert "frozen" not in reason


def test_a_network_that_contains_itself_is_refused() -> None:
    model = Small()
    model.body.around = model
    with pytest.raises(layerscope.LayerscopeError, match="contains itself"):
        layerscope.plan_swap(model, "layer")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda net: setattr(net, "forward", _keeps_its_graph(net)), r"earlier batch .* detach\(\)"),
        (lambda net: setattr(net, "head", _made_in_inference_mode()), "outside torch.inference_mode"),
    ],
)
def test_what_autograd_refuses_is_said_with_the_remedy(change: Any, says: str) -> None:
    model = Small()
    change(model)
    with pytest.raises(layerscope.LayerscopeError, match=says):
        layerscope.compare(model, "as is", images(), batch_size=4, chunks=2)


def _keeps_its_graph(net: nn.Module) -> Any:
    kept: list[torch.Tensor] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = net.head(net.body(x).mean((2, 3)))
        kept.append(out)
        return sum(kept[1:], kept[0])

    return forward


def _made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(8, 5)


def test_real_steps_that_fail_end_in_one_sentence() -> None:
    class Net(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            raise NotImplementedError("train() is not supported")

    with pytest.raises(layerscope.LayerscopeError, match=r"a real step failed: NotImplementedError"):
        layerscope.diagnose(Net(6, 5), (torch.randn(8, 6), torch.arange(8) % 5), batch_size=8, micro_steps=2)


def test_real_steps_of_a_network_with_one_output() -> None:
    batch = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    result = layerscope.diagnose(nn.Linear(6, 1), batch, batch_size=8, loss=_squares, micro_steps=3)
    assert result.choices[0].verdict.micro


def _squares(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return output.square().mean()


def test_a_detection_network_is_given_its_images_and_targets() -> None:
    class Net(Small):
        def forward(self, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> Any:
            out = self.head(self.body(torch.stack(images)).mean((2, 3)))
            boxes = torch.stack([t["boxes"].mean() for t in targets])
            return {"boxes": (out.mean(1) - boxes).square().mean(), "classes": out.square().mean()}

    images_ = list(torch.randn(3, 3, 12, 12))
    targets = [{"boxes": torch.rand(n, 4)} for n in (1, 2, 3)]
    result = layerscope.compare(Net(), ["as is", "group:size=4"], ((images_, targets), None), batch_size=3)
    assert (result.batch_size, result.in_shape) == (3, (3, 12, 12))
    assert all(choice.profiles and choice.profiles[0]["body.0"].variance for choice in result.choices)


def test_a_branch_that_starts_at_zero_is_no_vanished_signal() -> None:
    class Net(Small):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Conv2d(3, 3, 3, padding=1, groups=3)
            nn.init.zeros_(self.position.weight)
            nn.init.zeros_(self.position.bias)

        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x + self.position(x))

    axis = layerscope.judge(layerscope.profile(Net(), images())).axis("F")
    assert axis is not None
    assert axis.level == "good", axis.text
