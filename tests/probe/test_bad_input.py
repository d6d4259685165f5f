"""What a caller can get wrong gives one sentence that says where and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerscope.errors import ProbeError
from layerscope.probe import profile
from layerscope.probe.records import Level
from probe.problems import mlp, residual

IMAGES = torch.randn(4, 3, 8, 8)


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("kernel")


def deep_fault() -> nn.Module:
    model = residual()
    model[3].act = Raises()
    return model


def with_nan() -> Tensor:
    x = IMAGES.clone()
    x[2, 0, 0, 0] = torch.nan
    return x


CASES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "not a module": (lambda: "resnet", IMAGES, {}, r"expected a torch.nn.Module, got str"),
    "data parallel": (lambda: nn.DataParallel(residual()), IMAGES, {}, r"pass  model.module  instead"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), IMAGES, {}, r"lazy layers .* run one batch through it first"),
    "integers": (residual, IMAGES.to(torch.uint8), {}, r"x is uint8, .* pass x.float\(\) / 255"),
    "long": (residual, IMAGES.long(), {}, r"x is int64, .* pass x.float\(\)$"),
    "nan": (residual, with_nan(), {}, r"x holds 1 NaN or infinite values \(first in sample 2\)"),
    "empty": (residual, IMAGES[:0], {}, r"x is empty"),
    "no tensor": (residual, "images", {}, r"x must be a tensor or an array, got str"),
    "lengths": (residual, (IMAGES, torch.zeros(3)), {}, r"x has 4 samples and y has 3"),
    "batch size": (residual, IMAGES, {"batch_size": 8}, r"batch_size=8 but only 4 samples were given"),
    "batch size 0": (residual, IMAGES, {"batch_size": 0}, r"batch_size must be at least 1, got 0"),
    "channels": (residual, IMAGES[:, :1], {}, r"in '0' \(Conv2d\): RuntimeError: .* \[4, 1, 8, 8\] - check x's shape"),
    "vector": (residual, torch.randn(4, 5), {}, r"in '0' \(Conv2d\): .* the input was \[4, 5\] - check x's shape"),
    "features": (mlp, torch.randn(4, 7), {}, r"in '0' \(Linear\): .*shapes cannot be multiplied.* - check x's shape"),
    "one sample": (mlp, torch.randn(1, 6), {}, r"in '1' \(BatchNorm1d\): .* more than 1 value.* a larger batch"),
    "1x1 instance": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.InstanceNorm2d(4)),
        IMAGES,
        {},
        r"in '1' \(InstanceNorm2d\): .* use larger images",
    ),
    "raises": (deep_fault, IMAGES, {}, r"forward pass failed in '3.act' \(Raises\): KeyError: 'kernel'"),
    "level": (residual, IMAGES, {"level": "heavy"}, r"unknown level 'heavy': known: deep, light, standard"),
    "near level": (residual, IMAGES, {"level": "standart"}, r"did you mean 'standard'"),
    "loss": (residual, (IMAGES, torch.zeros(4)), {"loss": "cross_entropi"}, r"did you mean 'cross_entropy'"),
    "labels": (residual, (IMAGES, torch.full((4,), 9)), {}, r"labels run from 9 to 9, but the output has 5 classes"),
    "float labels": (residual, (IMAGES, torch.zeros(4)), {}, r"class labels must be integers \(y.long\(\)\)"),
    "label shape": (residual, (IMAGES, torch.zeros(4, 2).long()), {}, r"needs an output \[N, K\] and labels \[N\]"),
    "regression": (residual, (IMAGES, torch.zeros(4, 2)), {"loss": "mse"}, r"needs y of the output's shape \(4, 5\)"),
    "vector loss": (residual, (IMAGES, None), {"loss": lambda o, y: o}, r"one number as a tensor, got shape \(4, 5\)"),
    "path": (residual, IMAGES, {"select": ["3.conv3"]}, r"no module path matches '3.conv3': did you mean '3.conv"),
    "device": (residual, IMAGES, {"device": "gpu"}, r"'gpu' is not a device: use 'cpu'"),
    "elsewhere": (residual, IMAGES, {"device": "meta"}, r"the model is on cpu, not on meta: move it first"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_sentence(case: str) -> None:
    factory, batch, options, message = CASES[case]
    with pytest.raises(ProbeError) as caught:
        profile(factory(), batch, **options)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must be absent")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(ProbeError, match="'cuda' was asked for, but CUDA is not available here: use device='cpu'"):
        profile(residual(), IMAGES, device="cuda")


def test_fault_in_the_backward_pass_is_told_apart() -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return Breaks.apply(self.fc(x))

    with pytest.raises(ProbeError, match="the backward pass failed: RuntimeError: no way back"):
        profile(Model(), torch.randn(4, 3))


def test_one_sample_in_a_convolutional_network() -> None:
    """Batch norm over one image's positions is defined; what compares samples is not, and says so by None."""
    seen = profile(residual(), IMAGES[:1], level="deep")
    assert all(r.cosine is None and r.stable_rank is None and r.ms is not None for r in seen.records)
    assert seen.readout_cosine is None
    assert profile(residual(), IMAGES, batch_size=1).batch_noise == 0


def test_frozen_parameters_still_give_gradients_of_activations() -> None:
    torch.manual_seed(0)
    model, y = residual(), torch.arange(4) % 5
    free = profile(model, (IMAGES, y))
    model.requires_grad_(False)
    frozen = profile(model, (IMAGES, y))
    for a, b in zip(free.records, frozen.records, strict=True):
        assert a.grad_norm == (None if a.grad_norm is None else pytest.approx(b.grad_norm, rel=1e-5))
    assert frozen["0"].weight_grad is None
    model[-1].requires_grad_(True)
    assert profile(model, (IMAGES, y))["0"].grad_norm == pytest.approx(free["0"].grad_norm, rel=1e-5)


def test_no_gradient_at_all_is_said() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x).detach()
            return out

    seen = profile(Detached(), torch.randn(4, 3))
    assert seen["fc"].grad_norm is None
    assert any("no gradient reached any layer" in note for note in seen.warnings)


def test_samples_beyond_whole_batches_are_left_out_and_said() -> None:
    seen = profile(residual(), torch.randn(10, 3, 8, 8), batch_size=4)
    assert seen.chunks == 2
    assert any("the last 2 of 10 samples" in note for note in seen.warnings)


@pytest.mark.parametrize("level", ["light", "standard", "deep"])
def test_non_finite_activations_are_counted_never_hidden(level: Any) -> None:
    class Poison(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[1, 2, 0, 0] = torch.inf
            return x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Poison(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    seen = profile(model, IMAGES, level=level)
    assert seen["0"].nonfinite_share == 0
    assert seen["1"].nonfinite_share == pytest.approx(1 / 16)
    assert seen["1"].ms is not None
    assert not torch.tensor(seen["1"].ms).isfinite()


def test_dead_layers_have_no_cosine_and_are_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    nn.init.constant_(model[0].bias, -100.0)
    seen = profile(model, IMAGES, level="deep")
    dead = seen["1"]
    assert (dead.dead_share, dead.dead_samples, dead.zero_share) == (1.0, 4, 1.0)
    assert dead.cosine is None
    assert dead.stable_rank is None
    assert dead.nonfinite_share == 0


def test_a_dead_sample_is_masked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(6, 4)
    alive = profile(model, x, level="deep")["1"]
    masked = profile(model, torch.cat((x, torch.zeros(2, 4))), level="deep")["1"]
    assert masked.dead_samples == 2
    assert masked.cosine == pytest.approx(alive.cosine, rel=1e-5)
    assert masked.stable_rank == pytest.approx(alive.stable_rank, rel=1e-5)


def test_integer_inputs_are_right_for_an_embedding() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.act, self.head = nn.Embedding(20, 8), nn.Tanh(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.act(self.embed(x)).mean(1))
            return out

    torch.manual_seed(0)
    model, ids = Text(), torch.randint(20, (6, 5))
    seen = profile(model, (ids, torch.arange(6) % 3), batch_size=3)
    assert seen["embed"].layout == "token"
    assert seen["embed"].weight_grad is not None
    assert seen.batch_noise == 0
    model.requires_grad_(False)
    assert any("no gradient" in note for note in profile(model, ids).warnings)


@pytest.mark.parametrize("level", ["light", "deep"])
def test_a_group_norm_may_be_given_images_that_lie_channels_last(level: Level) -> None:
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model, x, y = nn.Sequential(*layers), torch.randn(8, 3, 9, 9), torch.arange(8) % 4
    usual = profile(model, (x, y), level=level)
    seen = profile(model, (x.contiguous(memory_format=torch.channels_last), y), level=level)
    assert usual["0"].weight_grad
    for a, b in zip(usual.records, seen.records, strict=True):
        for there, here in ((a.grad_scaled, b.grad_scaled), (a.weight_grad, b.weight_grad)):
            assert here == (None if there is None else pytest.approx(there, rel=1e-3))
