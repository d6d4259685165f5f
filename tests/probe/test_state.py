"""The probe changes nothing: every bit before is there after, also when the network raises."""

from __future__ import annotations

import copy
import gc
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerscope.errors import ProbeError
from layerscope.probe import profile
from probe.problems import PROBLEMS, Functional, Problem, residual


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a probe could leave behind, as comparable values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {k: (id(t), t.detach().clone()) for k, t in tensors.items()},
        "versions": [p._version for p in model.parameters()],
        "requires_grad": {k: t.requires_grad for k, t in tensors.items()},
        "grads": {k: None if t.grad is None else (id(t.grad), t.grad.clone()) for k, t in tensors.items()},
        "training": [m.training for m in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
            for m in model.modules()
        ],
        "tensor_hooks": {k: len(t._backward_hooks or {}) for k, t in tensors.items()},
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # the global generator is what must not move
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor | np.ndarray):
        equal = torch.equal(a, b) if isinstance(a, Tensor) else np.array_equal(a, b)
        assert equal, where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (u, v) in enumerate(zip(a, b, strict=True)):
            assert_same(u, v, f"{where}[{i}]")
    else:
        assert a == b, where


class Restless(nn.Module):
    """Changes everything a forward pass can: buffers, attributes, its own weights, random states."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.register_buffer("running", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(2))
        self.steps, self.memory = 0, torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.running.add_(1)
        self.replaced = torch.ones(2)
        self.steps += 1
        self.memory += 1
        self.cache = x
        self.fc.weight.data.mul_(0.9)
        random.random()
        np.random.rand()  # noqa: NPY002
        self.fc.bias.requires_grad_(True)
        out: Tensor = self.fc(nn.functional.dropout(x, 0.5))
        return out


def prepare(model: nn.Module) -> None:
    """A state that is nothing like the default."""
    generator = torch.Generator().manual_seed(3)
    for i, (parameter, module) in enumerate(zip(model.parameters(), model.modules(), strict=False)):
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) if i % 2 else None
        module.training = i % 3 == 0
    next(model.parameters()).register_hook(lambda g: g)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_nothing_changes(problem: Problem, functional: bool) -> None:
    model, x, y = problem.build()
    prepare(model)
    before = snapshot(model)
    first = profile(model, (x, y), level="deep", functional=functional, batch_size=3)
    assert_same(before, snapshot(model))
    second = profile(model, (x, y), level="deep", functional=functional, batch_size=3)
    assert first.records == second.records
    assert (first.loss, first.batch_noise, first.readout_cosine) == (
        second.loss,
        second.batch_noise,
        second.readout_cosine,
    )


def test_a_network_that_changes_itself_is_put_back() -> None:
    model, x = Restless(), torch.randn(4, 6)
    model.fc.bias.requires_grad_(False)
    before = snapshot(model)
    profile(model, x, seed=7)
    after = snapshot(model)
    del before["versions"], after["versions"]  # a value that had to be written back has a new version
    assert_same(before, after)
    assert model.steps == 0
    assert model.memory.sum() == 0
    assert not hasattr(model, "cache")


@pytest.mark.parametrize("fails", ["forward", "backward", "loss"])
def test_restored_after_an_exception(fails: str) -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = residual(), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            if fails == "forward":
                raise RuntimeError("lost the way")
            out: Tensor = self.last(Breaks.apply(x) if fails == "backward" else x)
            return out

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if fails == "loss":
            raise ValueError("no loss today")
        return output.sum()

    model, x, y = Bad(), torch.randn(4, 3, 8, 8), torch.zeros(4)
    prepare(model)
    before = snapshot(model)
    with pytest.raises((ProbeError, ValueError)):
        profile(model, (x, y), loss=loss, functional=True)
    assert_same(before, snapshot(model))


def test_a_graph_of_the_caller_stays_valid() -> None:
    torch.manual_seed(0)
    model, x = residual(), torch.randn(4, 3, 8, 8)
    loss = model(x).sum()
    profile(model, x)
    loss.backward()


def test_optimizers_in_the_backward_pass_do_not_step() -> None:
    model = nn.Linear(4, 3)
    model.weight.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
    profile(model, torch.randn(5, 4))
    assert model.weight.abs().sum() > 0
    assert model.weight.grad is None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inside_contexts_without_gradients(context: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, x = residual(), torch.randn(4, 3, 8, 8)
    with context():
        inside = profile(model, x.clone())
    assert inside.records == profile(model, x).records


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = residual(), torch.randn(6, 3, 8, 8)
    exact = profile(model, x, level="deep")
    with torch.autocast("cpu", dtype):
        seen = profile(model, x, level="deep")
    for record, twin in zip(seen.records, exact.records, strict=True):
        assert record.ms == pytest.approx(twin.ms, rel=0.05)
        assert record.cosine is None or record.cosine == pytest.approx(twin.cosine, abs=0.05)
    assert not torch.is_autocast_enabled("cpu")


def test_half_precision_network() -> None:
    torch.manual_seed(0)
    model, x = residual(lambda c: nn.GroupNorm(2, c)).bfloat16(), torch.randn(6, 3, 8, 8)
    seen = profile(model, x, level="deep")
    twin = profile(copy.deepcopy(model).float(), x)
    assert seen.dtype == "bfloat16"
    for record in seen.records:
        assert record.ms == pytest.approx(twin[record.name].ms, rel=0.1)


def test_no_memory_growth_over_100_calls() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(4, 3, 6, 6)
    tracemalloc.start()
    seen = []
    for calls in (50, 100):  # the first ones fill caches
        for _ in range(calls):
            profile(model, x, functional=True)
        gc.collect()
        seen.append((tracemalloc.get_traced_memory()[0], count_tensors()))
    tracemalloc.stop()
    (bytes_before, tensors), (bytes_after, tensors_after) = seen
    assert tensors_after == tensors
    assert bytes_after - bytes_before < 30_000, seen


def count_tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def test_a_weight_that_lies_channels_last_is_put_back() -> None:
    class Shrinking(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.mul_(0.5)
            return super().forward(x)

    model = nn.Sequential(Shrinking(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    before = model[0].weight.detach().clone()
    profile(model, torch.randn(3, 3, 4, 4))
    assert torch.equal(model[0].weight, before)
