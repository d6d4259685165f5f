"""The compiled passes of mixture normalization against float64 autograd and the blocks of torch operations."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from layerscope.compiled import ISAS, best_isa, find_compiler
from layerscope.norms import MixtureNorm
from layerscope.norms import mixture_native as native
from layerscope.norms.base import NormInputError
from layerscope.norms.mixture_kernel import near_mean, posterior_table, rows
from layerscope.norms.mixture_math import Mixture, floored, posteriors

if native._kernels(3) is None:
    pytest.skip("no compiled kernels here", allow_module_level=True)

SHAPES = {
    "maps": (5, 6, 7, 7),
    "a multiple of the vector": (4, 8, 8, 8),
    "fewer positions than a vector": (9, 5, 3, 1),
    "one channel": (8, 1, 5, 5),
    "one image": (1, 3, 9, 9),
    "cut into items": (2, 17, 70, 75),
    "vectors": (50, 19),
    "one channel, vectors": (60, 1),
    "tokens": (4, 30, 6),
    "many channels": (4, 700, 3, 3),
    "volumes": (3, 4, 3, 4, 5),
}


def data(shape: tuple[int, ...], seed: int = 0, last: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * 1.5 + torch.randint(0, 3, shape[:1], generator=g).view(
        -1, *[1] * len(shape[1:])
    )
    return x.contiguous(memory_format=torch.channels_last) if last else x


def train(layer: MixtureNorm, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output, gradients and state after a step."""
    inside = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(inside)
    y.backward(upstream)
    assert inside.grad is not None
    return [y.detach(), inside.grad, *(p.grad for p in layer.parameters()), *(b for b in layer.buffers() if b.ndim)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels ran."""
    seen: list[str] = []
    for name in ("collect", "collect_back", "normalize", "evaluate", "gradient"):
        original = getattr(native.Kernels, name)

        def noted(self: native.Kernels, *args: Tensor, name: str = name, original=original):
            seen.append(name)
            return original(self, *args)

        monkeypatch.setattr(native.Kernels, name, noted)
    return seen


def check(got: list[Tensor], exact: list[Tensor]) -> None:
    for a, want in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), want, rtol=1e-4, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize(
    ("name", "last"), [(n, False) for n in SHAPES] + [(n, True) for n, s in SHAPES.items() if len(s) == 4]
)
def test_a_step_equals_float64(name: str, last: bool, k: int, calls: list[str]) -> None:
    shape = SHAPES[name]
    x, upstream = data(shape, last=last), data(shape, 1, last=last)
    # eps, because the variance of a component of few positions has no digits in float32, whoever sums
    layer = MixtureNorm(shape[-1 if len(shape) == 3 else 1], k, eps=0.1)
    layer(x)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, layer.channels))
        layer.bias.copy_(torch.linspace(1, -1, layer.channels))
    exact = copy.deepcopy(layer).double()
    calls.clear()
    got = train(layer, x, upstream)
    assert calls == ["collect", "collect", "normalize", "collect_back", "gradient"][layer.temperature == 1 :]
    check(got, train(exact, x.double(), upstream.double()))
    assert got[0].stride() == x.stride()
    calls.clear()
    exact.load_state_dict(layer.state_dict())
    with torch.no_grad():
        y = layer.eval()(x)
        check([y], [exact.eval()(x.double())])
    assert calls == ["evaluate"]
    assert y.stride() == x.stride()


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same(isa: str) -> None:
    if ISAS.index(isa) < ISAS.index(best_isa()):
        pytest.skip(f"no {isa} here")
    kernels = native.Kernels(3, isa)
    for shape in ((4, 7, 11, 3), (6, 33, 2, 2)):
        x, c = rows(data(shape)), shape[1]
        mixture = Mixture(torch.tensor([0.2, 0.3, 0.5]), data((3, c), 1), data((3, c), 2).abs() + 0.5)
        centre = near_mean(x, 100)
        tau, sums = kernels.collect(x, posterior_table(mixture, centre, 1e-3), centre)
        wide = Mixture(*(t.double() for t in mixture))
        exact = posteriors(x.double(), floored(wide, 1e-3))
        torch.testing.assert_close(tau.double(), exact, rtol=1e-4, atol=2e-6)
        z = x.double() - centre.double().unsqueeze(1)
        want = torch.cat([torch.einsum("bks,bcs->kc", exact, z), torch.einsum("bks,bcs->kc", exact, z * z)], 1)
        torch.testing.assert_close(sums[:, :-1].double(), want, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(sums[:, -1].double(), exact.sum((0, 2)), rtol=1e-5, atol=1e-5)


def test_posteriors_of_far_components_are_exactly_zero_and_none_is_negative() -> None:
    """The exponential is our own: from 0 down to far below what float32 can hold."""
    x = torch.linspace(-40, 40, 4001).view(1, 1, -1)
    mixture = Mixture(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.0], [3.0], [-3.0]]), torch.ones(3, 1))
    centre = torch.zeros(1)
    kernels = native._kernels(3)
    assert kernels is not None
    tau, _ = kernels.collect(x, posterior_table(mixture, centre, 0.0), centre)
    exact = posteriors(x.double(), floored(Mixture(*(t.double() for t in mixture)), 0.0))
    torch.testing.assert_close(tau.double(), exact, rtol=2e-4, atol=1e-37)  # logits reach 800, whose unit is 6e-5
    assert tau.min() == 0
    assert (tau.sum(1) - 1).abs().max() < 3e-7


def test_threads_change_nothing_but_rounding_and_repeat_themselves() -> None:
    x, upstream = data((16, 8, 30, 30)), data((16, 8, 30, 30), 1)
    layer = MixtureNorm(8, 3)
    layer(x)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append([t.clone() for t in train(copy.deepcopy(layer), x, upstream)])
    finally:
        torch.set_num_threads(before)
    for one, two, again in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert torch.equal(two, again)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("last", [False, True])
def test_one_value_that_is_not_finite_is_refused_wherever_it_lies(bad: float, last: bool) -> None:
    x = data((3, 5, 5, 5), last=last)
    layer = MixtureNorm(5, 3)
    layer(x)
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    for at in ((0, 0, 0, 0), (2, 4, 4, 4), (1, 2, 3, 1)):
        broken = x.clone(memory_format=torch.preserve_format)
        broken[at] = bad
        with pytest.raises(NormInputError, match="not finite"):
            layer(broken)
    assert all(torch.equal(t, state[name]) for name, t in layer.state_dict().items())


def test_tables_may_lie_in_memory_in_any_order(calls: list[str]) -> None:
    layer, x = MixtureNorm(6, 3), data((5, 6, 7, 7))
    layer(x)
    turned = MixtureNorm(6, 3)
    state = {
        n: t.t().clone(memory_format=torch.contiguous_format).t() if t.ndim == 2 else t.clone()
        for n, t in layer.state_dict().items()
    }
    turned.load_state_dict(state, assign=True)
    turned.weight, turned.bias = (nn.Parameter(torch.stack([p.detach()] * 2, 1)[:, 0]) for p in layer.parameters())
    calls.clear()
    for a, b in zip(train(layer, x, x), train(turned, x, x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), turned.eval()(x))
    assert calls.count("evaluate") == 2


def test_lazily_negated_and_expanded_tensors_are_read_as_what_they_mean() -> None:
    layer = MixtureNorm(6, 3)
    layer(data((5, 6, 4, 4)))
    lazy = torch.complex(data((5, 6, 4, 4)), data((5, 6, 4, 4), 1)).conj().imag
    assert lazy.is_neg()
    for x in (lazy, data((5, 6, 1, 1)).expand(5, 6, 4, 4), data((5, 6, 4, 8))[..., ::2]):
        plain = x.clone(memory_format=torch.contiguous_format).resolve_neg()
        got = train(copy.deepcopy(layer), x, lazy)
        for a, b in zip(got, train(copy.deepcopy(layer), plain, lazy.resolve_neg()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from its forward-mode rules
def test_transforms_and_modes_see_torchs_own_operations(calls: list[str]) -> None:
    layer, x = MixtureNorm(6, 3), data((5, 6, 4, 4))
    layer(x)
    layer.eval()
    with torch.no_grad():
        want = layer(x)
        calls.clear()
        torch.testing.assert_close(torch.func.vmap(layer)(torch.stack([x, x]))[1], want, rtol=1e-4, atol=1e-5)
        with torch.autograd.forward_ad.dual_level():
            dual = layer(torch.autograd.forward_ad.make_dual(x, x))
            assert torch.autograd.forward_ad.unpack_dual(dual).tangent is not None
        with Counter() as counter:
            layer(x)
        assert counter.seen > 5
    assert not calls


def test_the_environment_turns_them_off_with_the_same_result(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    x = data((5, 6, 7, 7))
    layer = MixtureNorm(6, 3)
    layer(x)
    twin = copy.deepcopy(layer)
    got = train(layer, x, x)
    calls.clear()
    monkeypatch.setenv("LAYERSCOPE_NATIVE", "0")
    for a, b in zip(got, train(twin, x, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert twin.eval()(x[:, :, :0]).shape == (5, 6, 0, 7)
    assert not calls


def test_switching_between_forward_and_backward_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    for k in (3, 5):  # with and without a padded row of posteriors
        for first, second in (("1", "0"), ("0", "1")):
            layer, x = MixtureNorm(6, k), data((5, 6, 7, 7))
            layer(x)
            want = train(copy.deepcopy(layer), x, x)
            inside = x.clone().requires_grad_()
            monkeypatch.setenv("LAYERSCOPE_NATIVE", first)
            y = layer(inside)
            monkeypatch.setenv("LAYERSCOPE_NATIVE", second)
            y.backward(x)
            monkeypatch.delenv("LAYERSCOPE_NATIVE")
            torch.testing.assert_close(inside.grad, want[1], rtol=1e-4, atol=1e-5)


class Counter(TorchDispatchMode):
    """Counts the operations that it sees."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


SCRIPT = """
import torch
from layerscope.norms import MixtureNorm
g = torch.Generator().manual_seed(0)
for k in (3, 5):
    layer = MixtureNorm(4, k)
    for _ in range(2):
        y = layer(torch.randn(6, 4, 5, 5, generator=g))
    print(float(y.square().double().sum()))
"""


def run(**environment: str) -> tuple[list[float], str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def usual() -> list[float]:
    return run()[0]


@pytest.mark.parametrize("why", ["no compiler", "no cache", "no build"])
def test_without_them_there_is_one_notice_and_the_same_result(why: str, tmp_path: Path, usual: list[float]) -> None:
    blocked, broken = tmp_path / "file", tmp_path / "cxx"
    blocked.write_text("a file where a directory should be")
    broken.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    environment, said = {
        "no compiler": ({"PATH": str(tmp_path), "CXX": "", "LAYERSCOPE_CACHE": str(tmp_path)}, "no C++ compiler"),
        "no cache": ({"LAYERSCOPE_CACHE": str(blocked / "cache")}, "set LAYERSCOPE_CACHE"),
        "no build": ({"CXX": str(broken), "LAYERSCOPE_CACHE": str(tmp_path / "cache")}, "failed on mixture.cpp"),
    }[why]
    got, notice = run(**environment)
    assert got == pytest.approx(usual, rel=1e-5)
    assert said in notice
    assert notice.count("plain PyTorch") == 1


def test_a_library_is_its_components_and_flags() -> None:
    keys = {native.library(k).key(isa, "g++", "2.0") for k in (2, 3) for isa in ISAS}
    assert len(keys) == 6
    if find_compiler() is not None:
        assert native.library(3).build(best_isa(), quiet=True).seconds == 0.0
