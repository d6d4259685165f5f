"""Every recorded number against a slow obvious recorder: clones of every output and gradient, and the definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from layerscope import quantities as q
from layerscope.probe import LayerRecord, profile
from probe.problems import PROBLEMS, Functional, Problem, ResidualBlock, residual


@dataclass
class Stored:
    """One call as the slow recorder kept it."""

    value: Tensor
    grad: Tensor | None = field(default=None)


def store_everything(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Stored]:
    """Clones of every leaf module's output and gradient, by call site."""
    stored: dict[str, Stored] = {}
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            out = output if isinstance(output, Tensor) else output[0]
            calls = sum(name.split("#")[0] == path for name in stored)
            kept = Stored(out.detach().clone())
            stored[path if not calls else f"{path}#{calls + 1}"] = kept
            out.register_hook(lambda g: setattr(kept, "grad", g.clone()))

        handles.append(module.register_forward_hook(hook))

    for path, module in model.named_modules():
        if not list(module.children()) or isinstance(module, nn.MultiheadAttention):
            watch(path, module)
    functional.cross_entropy(model.train()(x), y).backward()
    for handle in handles:
        handle.remove()
    return stored


def by_channel(value: Tensor, layout: str) -> Tensor:
    """[C, N * positions]."""
    last = layout == "token"
    return value.movedim(-1 if last else 1, 0).flatten(1)


def check(record: LayerRecord, stored: Stored, tolerance: float) -> None:
    value, n = stored.value.double(), len(stored.value)
    channels = by_channel(value, record.layout)

    def same(got: float | None, expected: float | Tensor) -> None:
        assert got is not None
        assert got == pytest.approx(float(expected), rel=tolerance, abs=tolerance), record.name

    same(record.variance, channels.var(1).mean())
    same(record.std, channels.std(1).mean())
    same(record.ms, value.square().mean())
    same(record.mean, value.mean())
    same(record.dead_share, (channels == 0).all(1).double().mean())
    flat = value.flatten(1)
    alive = flat.norm(dim=1) > 0
    assert record.dead_samples == int((~alive).sum())
    m = functional.normalize(flat[alive]) @ functional.normalize(flat[alive]).T
    k = len(m)
    if record.cosine is not None:
        same(record.cosine, (m.sum() - k) / (k * (k - 1)))
    if record.stable_rank is not None:
        same(record.stable_rank, n / torch.linalg.eigvalsh(m).amax())
        same(record.participation_ratio, n**2 / m.square().sum())
        centred = m - m.mean(0) - m.mean(1, keepdim=True) + m.mean()
        for got, matrix in ((record.effective_rank, m), (record.effective_rank_centred, centred)):
            p = torch.linalg.eigvalsh(matrix).clamp_min(1e-300)
            p = p / p.sum()
            same(got, (-(p * p.log()).sum()).exp())
    if record.layout != "vector":
        pooled = value.mean(1) if record.layout == "token" and value.ndim == 3 else value.flatten(2).mean(2)
        if value.ndim == 4 and record.layout == "token":
            pooled = value.mean((1, 2))
        p = functional.normalize(pooled)
        same(record.cosine_pooled, ((p @ p.T).sum() - n) / (n * (n - 1)))
    if record.cosine_token is not None:
        tokens = functional.normalize(value.flatten(1, -2), dim=-1)
        s = tokens.shape[1]
        same(record.cosine_token, (((tokens @ tokens.mT).sum((1, 2)) - s) / (s * (s - 1))).mean())
    if record.absmax is not None:
        same(record.absmax, value.abs().max())
    if record.zero_share is not None:
        same(record.zero_share, (value == 0).double().mean())
    if record.grad_norm is not None:
        assert stored.grad is not None
        same(record.grad_norm, stored.grad.double().norm())
        same(record.grad_scaled, stored.grad.double().norm() * value.square().mean().sqrt())


@pytest.mark.parametrize("level", ["light", "standard", "deep"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_every_number(problem: Problem, level: str) -> None:
    model, x, y = problem.build()
    stored = store_everything(model, x, y)
    seen = profile(model, (x, y), level=level)  # type: ignore[arg-type]  # parametrized by plain strings
    tolerance = 1e-6 if problem.dtype == torch.float64 else 2e-5
    compared = 0
    for record in seen.records:
        if record.role != "block":
            check(record, stored[record.name], tolerance)
            compared += 1
    assert compared >= 5
    weighted = [r for r in seen.of("conv", "linear") if r.grad_norm is not None]
    assert len(weighted) == len(seen.of("conv", "linear"))
    if level == "deep":
        activations = seen.of("activation")
        assert all(None not in (r.cosine, r.stable_rank, r.absmax, r.grad_norm) for r in activations)


def test_weights_and_their_gradients() -> None:
    model, x, y = PROBLEMS[0].build()
    functional.cross_entropy(model.train()(x), y).backward()
    conv = model.get_submodule("3.conv1")
    record = profile(model, (x, y))["3.conv1"]
    assert record.weight_norm == pytest.approx(float(conv.weight.detach().norm()))
    assert record.weight_grad == pytest.approx(float(conv.weight.grad.norm()))
    assert record.relative_update == pytest.approx(float(conv.weight.grad.norm() / conv.weight.detach().norm()))


def test_reused_module_is_separate_call_sites() -> None:
    model, x, y = PROBLEMS[0].build()
    seen = profile(model, (x, y))
    assert seen["3.act"].ms != seen["3.act#2"].ms
    assert seen["3.act#2"].feeds == "3"


def test_block_output_is_recorded_and_shares_the_numbers_of_its_last_activation() -> None:
    model, x, y = PROBLEMS[0].build()
    seen = profile(model, (x, y))
    block, last = seen["3"], seen["3.act#2"]
    assert block.role == "block"
    assert (block.ms, block.cosine) == (last.ms, last.cosine)
    assert block.grad_norm is not None


def test_conv_output_under_an_inplace_relu_is_the_value_before_it() -> None:
    """A recorder that stores references would see the rectified tensor here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(5, 2, 6, 6)
    before = model[0](x).detach()
    assert (before < 0).any()
    seen = profile(model, (x, torch.arange(5) % 3), level="deep")
    assert seen["0"].mean == pytest.approx(float(before.mean()), abs=1e-6)
    assert seen["0"].ms == pytest.approx(float(before.square().mean()), rel=1e-5)
    assert seen["1"].mean == pytest.approx(float(before.relu().mean()), rel=1e-5)


def test_identities_and_views_are_not_recorded_twice() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Identity(), nn.Dropout(0.0), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.ReLU()
    )
    seen = profile(model, torch.randn(5, 4), blocks=[])
    assert [r.kind for r in seen.records if r.kind != "Dropout"] == ["Linear", "ReLU"]


def test_functions_are_seen_on_request() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(6, 3, 8, 8)
    without, seen = profile(model, x), profile(model, x, functional=True)
    assert not without.of("activation", "op")
    assert [r.name for r in seen.of("activation")] == ["relu", "relu#2"]
    add = seen["add"]
    h = functional.relu(model.bn1(model.conv1(x)))
    expected = (model.bn2(model.conv2(h)) + h).detach()
    assert add.role == "op"
    assert add.ms == pytest.approx(float(expected.square().mean()), rel=1e-4)
    assert add.mean == pytest.approx(float(expected.mean()), rel=1e-4)
    for record in without.records:
        twin = seen[record.name]
        assert twin.ms == pytest.approx(record.ms, rel=1e-5)


def test_networks_without_activation_modules_are_read_at_their_norms() -> None:
    seen = profile(Functional(), torch.randn(6, 3, 8, 8))
    assert all(r.cosine is not None and r.stable_rank is not None for r in seen.of("conv", "norm"))


def test_window_and_sequence_first_tensors() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            x = self.inside(x.reshape(n * 2, -1, 4)).reshape(n, -1, 4)
            x = self.first(x.transpose(0, 1)).transpose(0, 1)
            out: Tensor = self.head(x.mean(1))
            return out

    torch.manual_seed(0)
    model, x = Windows().double(), torch.randn(5, 6, 4, dtype=torch.float64)
    seen = profile(model, x)
    inside = model.inside(x)
    assert seen["inside"].shape == (5, 6, 4)
    assert seen["inside"].cosine == pytest.approx(float(q.mean_cosine(inside.detach().flatten(1))))
    assert seen["first"].shape == (5, 6, 4)
    assert seen["first"].cosine == pytest.approx(float(q.mean_cosine(model.first(inside).detach().flatten(1))))


def test_chunks_are_training_batches_and_averaged() -> None:
    model, x, y = PROBLEMS[0].build(12)
    parts = [profile(model, (x[i : i + 4], y[i : i + 4])) for i in (0, 4, 8)]
    whole = profile(model, (x, y), batch_size=4, batch_noise=False)
    assert (whole.chunks, whole.batch_size) == (3, 4)
    for record in whole.records:
        twins = [p[record.name] for p in parts]
        for name in ("ms", "variance", "cosine", "grad_norm", "weight_grad", "effective_rank"):
            values = [getattr(t, name) for t in twins]
            if values[0] is not None:
                assert getattr(record, name) == pytest.approx(math.fsum(values) / 3), (record.name, name)
    assert whole.loss == pytest.approx(sum(p.loss for p in parts if p.loss is not None) / 3)


def test_select_and_blocks() -> None:
    model, x, y = PROBLEMS[0].build()
    assert [r.name for r in profile(model, (x, y), select=["3.conv*"]).records] == ["3.conv1", "3.conv2"]
    assert {r.name for r in profile(model, (x, y), blocks=["5"]).of("block")} == {"5"}


def test_large_maps_are_sampled_for_the_gram_matrix_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 40, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 3)
    )
    x = torch.randn(8, 1, 32, 32) + 0.5
    standard, deep = profile(model, x)["1"], profile(model, x, level="deep")["1"]
    assert standard.cosine == pytest.approx(deep.cosine, rel=1e-5)
    assert standard.stable_rank == pytest.approx(deep.stable_rank, rel=0.02)
    assert standard.stable_rank != deep.stable_rank


def test_gradient_checkpointing_is_recorded_once() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(checkpoint(self.body, x, use_reentrant=False))
            return out

    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(5, 4)
    seen = profile(model, x)
    assert [r.name for r in seen.records] == ["body.0", "body.1", "head"]
    plain = profile(nn.Sequential(*model.body, model.head), x)
    assert seen["body.0"].grad_norm == pytest.approx(plain["0"].grad_norm, rel=1e-5)


def test_residual_network_of_either_norm_has_blocks() -> None:
    for norm in (nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c)):
        seen = profile(residual(norm), torch.randn(6, 3, 8, 8))
        assert [r.name for r in seen.of("block") if r.residual] == ["3", "5"]


@pytest.mark.parametrize("level", ["light", "standard", "deep"])
@pytest.mark.parametrize("mean", [100.0, 1000.0, 10000.0])
def test_small_variance_around_a_large_mean(level: str, mean: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    nn.init.constant_(model[0].bias, mean)
    x = torch.randn(8, 3, 8, 8)
    u = model[0](x).detach().double()
    record = profile(model, x, level=level)["0"]  # type: ignore[arg-type]  # parametrized by plain strings
    channels = u.movedim(1, 0).flatten(1)
    assert record.variance == pytest.approx(float(channels.var(1).mean()), rel=2e-3)
    assert record.std == pytest.approx(float(channels.std(1).mean()), rel=2e-3)
    assert record.grad_scaled == pytest.approx(record.grad_norm * math.sqrt(record.ms))


def test_values_whose_squares_overflow_are_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    nn.init.normal_(model[0].weight, std=1e25)
    seen = profile(model, torch.randn(8, 3, 8, 8), level="deep")
    for name in ("0", "1"):
        record = seen[name]
        assert record.nonfinite_share == 0
        assert record.ms is not None
        assert 1e48 < record.ms < 1e54
        assert record.cosine is not None
        assert math.isfinite(record.cosine)


def test_a_second_look_sees_the_same_random_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 3))
    nn.init.constant_(model[1].bias, 3e3)
    x = torch.randn(8, 3, 8, 8)
    torch.manual_seed(3)
    u = model[:2].train()(x).detach().double().movedim(1, 0).flatten(1)
    seen = profile(model, x, seed=3)["1"]
    assert seen.variance == pytest.approx(float(u.var(1).mean()), rel=1e-6)


class PostNorm(nn.Module):
    """``norm(x + branch(x))``: the block hands on what its norm returned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.branch(x))
        return out


@pytest.mark.parametrize("level", ["standard", "deep"])
def test_a_block_that_ends_in_a_norm_is_measured_as_a_block(level: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), *(PostNorm(12) for _ in range(3)), nn.Flatten(), nn.Linear(60, 4))
    x = torch.randn(8, 5, 6)
    out = model[:3](x).detach().double()
    seen = profile(model, (x, torch.arange(8) % 4), level=level)  # type: ignore[arg-type]  # plain strings
    block = seen["2"]
    assert block.role == "block"
    assert block.cosine == pytest.approx(float(q.mean_cosine(out.flatten(1))), abs=1e-5)
    tokens = [float(q.mean_cosine(sample)) for sample in out]
    assert block.cosine_token == pytest.approx(sum(tokens) / len(tokens), abs=1e-5)
    assert block.ms == pytest.approx(float(out.square().mean()), rel=1e-5)
    assert block.grad_norm is not None


@pytest.mark.parametrize("level", ["standard", "deep"])
def test_ranks_are_of_the_first_32_samples_and_the_cosine_of_all_that_are_read(level: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(40, 1, 6, 6) + torch.linspace(-2, 2, 40).view(-1, 1, 1, 1)
    value = model[:2](x).detach().double().flatten(1)
    seen = profile(model, x, level=level)["1"]  # type: ignore[arg-type]  # parametrized by plain strings
    m = functional.normalize(value[:32]) @ functional.normalize(value[:32]).T
    assert seen.stable_rank == pytest.approx(float(32 / torch.linalg.eigvalsh(m).amax()), rel=1e-5)
    assert seen.participation_ratio == pytest.approx(float(32**2 / m.square().sum()), rel=1e-5)
    read = functional.normalize(value if level == "deep" else value[:32])
    n = len(read)
    assert seen.cosine == pytest.approx(float(((read @ read.T).sum() - n) / (n * (n - 1))), rel=1e-5)


def stream(blocks: int) -> nn.Module:
    """A residual network of equal blocks."""
    body = [ResidualBlock(4) for _ in range(blocks)]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("blocks", [2, 3])
def test_light_leaves_the_gradient_inside_a_stream_to_its_blocks(blocks: int) -> None:
    torch.manual_seed(0)
    model, x, y = stream(blocks), torch.randn(6, 1, 5, 5), torch.arange(6) % 3
    light, deep = profile(model, (x, y), level="light"), profile(model, (x, y), level="deep")
    inner = [r for r in light.of("conv") if r.name != "0"]
    assert len(inner) == 2 * blocks
    assert all((r.grad_norm is None) == (blocks == 3) for r in inner)
    for record in light.records:
        twin = deep[record.name]
        assert record.weight_grad == twin.weight_grad
        if record.grad_norm is not None:
            assert record.grad_norm == pytest.approx(twin.grad_norm, rel=1e-5)
    assert all(r.grad_norm for r in (*light.of("block", "linear"), light["0"]))


def test_moments_of_the_first_32_samples_and_gradients_of_all() -> None:
    """At ``light`` and ``standard``; ``deep`` reads all. The network runs on the whole batch at every level."""
    torch.manual_seed(0)
    model, x, y = stream(3), torch.randn(40, 1, 5, 5) * torch.linspace(1, 3, 40).view(-1, 1, 1, 1), torch.arange(40) % 3
    stored = store_everything(model, x, y)
    every, grad = stored["0"].value.double(), stored["0"].grad
    assert grad is not None
    for level, samples in (("light", 32), ("standard", 32), ("deep", 40)):
        seen = profile(model, (x, y), level=level)  # type: ignore[arg-type]  # plain strings
        record = seen["0"]
        assert record.shape[0] == 40
        assert record.ms == pytest.approx(float(every[:samples].square().mean()), rel=1e-5)
        assert record.variance == pytest.approx(float(by_channel(every[:samples], "conv").var(1).mean()), rel=1e-5)
        assert record.grad_norm == pytest.approx(float(grad.double().norm()), rel=1e-5)
        if level != "light":
            acted = stored["1.act"].value.double()[:samples]
            assert seen["1.act"].ms == pytest.approx(float(acted.square().mean()), rel=1e-5)


def test_a_batch_norm_over_another_axis_than_the_layer_before_it() -> None:
    """A linear layer's channels are the last axis, the batch norm's behind it the second: nothing follows from them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(7), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3))
    x = torch.randn(6, 7, 5) + torch.arange(7.0).view(1, 7, 1)
    nn.init.uniform_(model[1].weight, 0.5, 2)
    value = model[:2](x).detach().double()
    for level in ("light", "standard", "deep"):
        seen = profile(model, (x, torch.arange(6) % 3), level=level)["1"]  # type: ignore[arg-type]  # plain strings
        assert seen.ms == pytest.approx(float(value.square().mean()), rel=1e-5)
        assert seen.variance == pytest.approx(float(value.movedim(1, 0).flatten(1).var(1).mean()), rel=1e-5)


def test_a_part_that_runs_in_inference_mode_is_measured() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.frozen, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x).relu()
            with torch.inference_mode():
                t = self.frozen(h.detach())
            out: Tensor = self.head(h + t.clone())
            return out

    torch.manual_seed(0)
    model, x = Frozen(), torch.randn(6, 5)
    expected = model.frozen(model.stem(x).relu()).detach().square().mean()
    for level in ("light", "standard", "deep"):
        seen = profile(model, x, level=level)  # type: ignore[arg-type]  # plain strings
        assert seen["frozen"].ms == pytest.approx(float(expected), rel=1e-5)
        assert seen["frozen"].grad_norm is None
        assert seen["stem"].grad_norm is not None


def test_complex_outputs_are_left_out_and_said_so() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(5, 4, dtype=torch.complex64), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.mix(torch.complex(x, x)).abs())
            return out

    torch.manual_seed(0)
    seen = profile(Spectrum(), torch.randn(6, 5))
    assert [r.name for r in seen.records] == ["head"]
    assert any("'mix' returned complex numbers" in warning for warning in seen.warnings)


def test_a_part_that_is_vmapped_is_left_out_and_said_so() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.vmap(self.inner)(x).relu())
            return out

    torch.manual_seed(0)
    model, x = Mapped(), torch.randn(6, 5)
    seen = profile(model, x, functional=True)
    assert [r.name for r in seen.records] == ["relu", "head"]
    assert any("'inner' ran inside" in warning for warning in seen.warnings)
    assert seen.readout_cosine == pytest.approx(float(q.mean_cosine(model.inner(x).relu().detach())), abs=1e-5)
