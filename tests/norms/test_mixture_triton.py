"""The Triton kernels against the plain torch path in float64: on a GPU, or interpreted on a CPU.

TRITON_INTERPRET=1 python -m pytest tests/norms/test_mixture_triton.py     # needs triton and numpy < 2.3
"""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerscope.norms import MixtureNorm, NormInputError, mixture_fused

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
# what Triton's interpreter asks of numpy, not ours
pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:  # the interpreter runs them on the CPU
        monkeypatch.setattr(mixture_fused, "usable", lambda x, k: x.dtype != torch.float64)


def data(shape: tuple[int, ...], seed: int = 0, offset: float = 3.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + offset).to(DEVICE)


def layer(channels: int, k: int = 3, **options: Any) -> MixtureNorm:
    made = MixtureNorm(channels, k, **options).to(DEVICE)
    if made.weight is not None:
        with torch.no_grad():
            made.weight.copy_(torch.linspace(0.5, 2, channels))
            made.bias.copy_(torch.linspace(-1, 1, channels))
    return made


def both(made: MixtureNorm, x: Tensor, up: Tensor) -> tuple[list[tuple[str, Tensor, Tensor]], MixtureNorm, MixtureNorm]:
    """Output, gradients and buffers of one step, by the kernels and in float64; and the two layers after it."""
    fast, exact = copy.deepcopy(made), copy.deepcopy(made).double()
    a, b = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), x.double().requires_grad_()
    y, z = fast(a), exact(b)
    y.backward(up.to(y.dtype))
    z.backward(up.to(y.dtype).double())
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    found = [("y", y.detach(), z.detach()), ("dx", a.grad, b.grad)]
    for (name, p), q in zip(fast.named_parameters(), exact.parameters(), strict=True):
        found.append((name, p.grad, q.grad))
    for (name, p), q in zip(fast.named_buffers(), exact.buffers(), strict=True):
        found.append((name, p, q))
    return found, fast, exact


def check(found: list[tuple[str, Tensor, Tensor]], tolerance: float) -> None:
    for name, got, want in found:
        size = max(1.0, float(want.double().abs().max()))
        error = float((got.double() - want.double()).abs().max()) / size
        assert error < tolerance, f"{name}: {error:.2e}"


SHAPES = [(12, 6), (33, 20), (3, 7, 9), (4, 6, 5, 5), (2, 16, 8, 8), (5, 1, 7, 3), (2, 150, 3, 3), (2, 5, 3, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("k", "options"), [
    (3, {"temperature": 2.0}), (2, {"scale": "unit"}), (1, {}), (8, {"temperature": 1, "affine": False}),
])  # fmt: skip
def test_a_training_step_and_evaluation_equal_float64(shape: tuple[int, ...], k: int, options: dict[str, Any]) -> None:
    made = layer(shape[-1] if len(shape) == 3 else shape[1], k, **options)
    made(data(shape, 1))
    found, fast, exact = both(made, data(shape, 2), data(shape, 3, 0.0))
    check(found, 2e-5)
    with torch.no_grad():
        x = data(shape, 4)
        check([("evaluation", fast.eval()(x), exact.eval()(x.double()))], 2e-5)


@pytest.mark.skipif(not CUDA, reason="too large for the interpreter")
@pytest.mark.parametrize(
    "shape", [(256, 64, 28, 28), (256, 128, 14, 14), (64, 256, 7, 7), (3, 1000, 5, 5), (100000, 24), (256, 300, 1, 1)]
)
@pytest.mark.parametrize("k", [2, 3, 5, 8])
@pytest.mark.parametrize("last", [False, True])
def test_large_batches_equal_float64(shape: tuple[int, ...], k: int, last: bool) -> None:
    made = layer(shape[1], k)
    made(data(shape, 1))
    x = data(shape, 2)
    x = x.to(memory_format=torch.channels_last) if last and x.ndim == 4 else x
    found, fast, exact = both(made, x, data(shape, 3, 0.0))
    check(found, 1e-4)
    with torch.no_grad():
        check([("evaluation", fast.eval()(x), exact.eval()(x.double()))], 1e-4)


def test_channels_last_is_read_in_place() -> None:
    made = layer(16)
    made(data((2, 16, 6, 5), 1))
    x = data((2, 16, 6, 5), 2).to(memory_format=torch.channels_last)
    found, _, _ = both(made, x, data((2, 16, 6, 5), 3))
    check(found, 2e-5)


def test_odd_strides_are_read() -> None:
    made = layer(6)
    made(data((4, 6, 5, 5), 1))
    x = data((4, 12, 5, 10), 2)[:, ::2, :, ::2]
    fast, exact = copy.deepcopy(made), copy.deepcopy(made).double()
    check([("y", fast(x).detach(), exact(x.double()).detach())], 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_and_written_as_it_is(dtype: torch.dtype) -> None:
    made = layer(6, 3, temperature=2.0)
    made(data((4, 6, 5, 5), 1))
    x = data((4, 6, 5, 5), 2).to(dtype)
    found, _, _ = both(made, x, data((4, 6, 5, 5), 3, 0.0))
    rounded = torch.finfo(dtype).eps
    check(found[:2], 2 * rounded)
    check(found[2:], 2e-5)
    with torch.autocast(DEVICE, dtype=dtype):
        assert made(x).dtype == dtype


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_an_offset_costs_no_digits_beyond_those_of_the_input(offset: float) -> None:
    made = layer(6)
    x = data((4, 6, 5, 5), 2, offset)
    made(x)
    found, _, _ = both(made, x, data((4, 6, 5, 5), 3, 0.0))
    check(found, 1e-6 * offset)


@pytest.mark.parametrize("case", ["constant", "identical", "few", "outlier", "dead"])
def test_degenerate_batches_stay_finite(case: str) -> None:
    x = data((4, 6, 5, 5))
    if case == "constant":
        x = torch.full_like(x, 3.0)
    elif case == "identical":
        x = x[:1].repeat(4, 1, 1, 1)
    elif case == "few":
        x = x[:3, :, :1, :1].contiguous()
    elif case == "outlier":
        x[0, 0, 0, 0] = 1e4
    elif case == "dead":
        x = x.relu() * (torch.arange(6, device=DEVICE) < 3).view(1, -1, 1, 1)
    made = layer(6, 4)
    x.requires_grad_()
    for _ in range(3):
        y = made(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(grad).all())
    assert all(bool(torch.isfinite(b).all()) for b in made.buffers())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_values_that_are_not_finite_are_refused_at_the_next_call_and_leave_no_trace(bad: float) -> None:
    made = layer(6)
    made(data((4, 6, 5, 5)))
    before = copy.deepcopy(made.state_dict())
    x = data((4, 6, 5, 5), 3)
    x[1, 2, 3, 3] = bad
    made(x)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    with pytest.raises(NormInputError, match="not finite"):
        made(data((4, 6, 5, 5), 4))
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    made(data((4, 6, 5, 5), 4))  # said once


@pytest.mark.parametrize("training", [True, False])
def test_values_that_are_not_finite_stop_the_backward_pass_or_the_next_call(training: bool) -> None:
    made = layer(6)
    made(data((4, 6, 5, 5)))
    x = data((4, 6, 5, 5), 3)
    x[1, 2, 3, 3] = math.nan
    weight = None if made.weight is None else made.weight.detach().clone()
    y = made(x.requires_grad_())
    with pytest.raises(NormInputError, match="not finite"):
        y.sum().backward()
    assert made.weight is not None
    assert made.weight.grad is None
    assert torch.equal(made.weight, weight)
    made.train(training)(data((4, 6, 5, 5), 4))  # said once
    made.train()(x.detach())
    with pytest.raises(NormInputError, match="not finite"), torch.no_grad():
        made.train(training)(data((4, 6, 5, 5), 4))


def test_results_do_not_change_from_run_to_run() -> None:
    made = layer(20)
    made(data((8, 20, 9, 9), 1))
    runs = []
    for _ in range(2):
        found, _, _ = both(made, data((8, 20, 9, 9), 2), data((8, 20, 9, 9), 3))
        runs.append(found)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*runs, strict=True))


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    plain, saved = layer(6), layer(6)
    grads = []
    for made, through in ((plain, False), (saved, True)):
        made(data((4, 6, 5, 5), 1))
        x = data((4, 6, 5, 5), 4).requires_grad_()
        y = checkpoint(made, x, use_reentrant=False) if through else made(x)
        y.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), saved.buffers(), strict=True))


def test_recalibration_averages_by_the_same_kernels() -> None:
    from layerscope import norms

    fast = nn.Sequential(layer(6, 2))
    fast(data((4, 6, 5, 5), 1))
    exact = copy.deepcopy(fast).double()
    batches = [data((4, 6, 5, 5), s) for s in range(3)]
    norms.recalibrate(fast, batches)
    norms.recalibrate(exact, [x.double() for x in batches])
    check([(n, a, b) for (n, a), b in zip(fast.named_buffers(), exact.buffers(), strict=True)], 2e-5)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_the_rule_of_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    x = data((4, 6, 5, 5))
    assert mixture_fused.usable(x, 3)
    assert not mixture_fused.usable(x.double(), 3)
    assert not mixture_fused.usable(x.cpu(), 3)
    assert not mixture_fused.usable(x, 17)
    monkeypatch.setenv("LAYERSCOPE_TRITON", "0")
    assert not mixture_fused.usable(x, 3)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_a_cuda_graph_replays_the_step() -> None:
    made, twin = layer(16), layer(16)
    xs = [data((8, 16, 6, 6), s) for s in range(6)]
    for x in xs[:3]:
        made(x)
        twin(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    still = xs[3].clone()
    with torch.cuda.stream(stream):
        made(still)
    twin(still)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = made(still)
    for x in xs[4:]:
        still.copy_(x)
        graph.replay()
        check([("y", y.detach(), twin(x).detach())], 1e-6)
    check([(n, a, b) for (n, a), b in zip(made.named_buffers(), twin.buffers(), strict=True)], 1e-6)
