"""The mixture layers: equality with batch norm at K=1, modes, degenerate batches, and everything around training."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerscope import norms, sources, surgery
from layerscope.errors import SpecError, SwapError
from layerscope.norms import ChannelMixtureNorm, MixtureNorm, ModeNorm, NormInputError
from layerscope.norms.mixture_kernel import rows, unrows
from layerscope.norms.mixture_math import Mixture, amplitude, floored, moments, posteriors, transform

SHAPES = [(12, 6), (5, 4, 6), (4, 6, 5, 5), (2, 6, 3, 3, 3)]


def data(shape: tuple[int, ...] = (4, 6, 5, 5), seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=dtype) * 2 + 0.7


def trained(spec: str = "mixture:k=3,temperature=2", channels: int = 6, seed: int = 5) -> Any:
    """A layer of ``channels`` channels with a random affine map that has seen three batches."""
    layer = norms.build(spec, channels).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    for s in range(3):
        layer(data((4, channels, 5, 5), seed=s))
    return layer


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", ["mixture:k=1", "mixture:k=1,posterior=channel", "mode:k=1"])
def test_one_component_is_batch_norm(spec: str, shape: tuple[int, ...]) -> None:
    ours, bn = norms.build(spec, 6).double(), norms.build("batch", 6).double()
    with torch.no_grad():
        for layer in (ours, bn):
            layer.weight.copy_(torch.linspace(0.5, 2, 6))
            layer.bias.copy_(torch.linspace(-1, 1, 6))
    for step in range(1, 4):
        if "mixture" in spec:
            bn.momentum = max(0.1, 1 / step)  # the t-th batch weighs at least 1/t, so that the start is forgotten
        grads = []
        for layer in (ours, bn):
            x = data(shape, step).requires_grad_()
            y = layer(x)
            layer.zero_grad()
            y.backward(data(shape, 77))
            grads.append((y.detach(), x.grad, layer.weight.grad, layer.bias.grad))
        for a, b in zip(*grads, strict=True):
            close(a, b)
    x = data(shape, 9)
    if "mode" not in spec:  # mode norm's running variance is second moment minus squared mean, after its paper
        close(ours.eval()(x), bn.eval()(x))


def test_modes_are_separated_where_batch_norm_mixes_them() -> None:
    """Two contrast laws: within each component the output has the scale that batch norm would give it alone."""
    g = torch.Generator().manual_seed(0)
    law = torch.arange(64) % 2
    x = torch.randn(64, 8, 6, 6, generator=g) * torch.tensor([0.1, 3.0])[law].view(-1, 1, 1, 1)
    x = x + torch.tensor([-6.0, 6.0])[law].view(-1, 1, 1, 1)
    mixed = norms.build("mixture:k=2,scale=unit,temperature=1", 8)
    for _ in range(5):
        y = mixed(x)
    for which in (0, 1):
        assert y[law == which].std().item() == pytest.approx(1, rel=0.02)
        assert y[law == which].mean().item() == pytest.approx(0, abs=0.02)
    assert norms.build("batch", 8)(x)[law == 0].std().item() < 0.05


def test_tempered_posteriors_do_not_merge_the_components() -> None:
    g = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(3, 16, generator=g)
    layer = MixtureNorm(16, 3)
    for step in range(60):
        label = torch.randint(3, (32,), generator=torch.Generator().manual_seed(step))
        noise = torch.randn(32, 16, 4, 4, generator=torch.Generator().manual_seed(step))
        layer(centres[label].view(32, 16, 1, 1) + noise)
    distance = torch.cdist(layer.mixture_mean, centres).min(1).values
    assert distance.max().item() < 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_fast_path_equals_the_differentiable_one(shape: tuple[int, ...]) -> None:
    layer = trained().eval()
    x = data(shape, 8)
    with torch.no_grad():
        fast = layer(x)
    close(fast, layer(x.requires_grad_()).detach(), 1e-10)


@pytest.mark.parametrize("spec", ["mixture:k=3,temperature=2", "mixture:k=3,posterior=channel", "mode:k=3"])
def test_evaluation_does_not_depend_on_batch_mates(spec: str) -> None:
    layer, x = trained(spec).eval(), data(seed=8)
    with torch.no_grad():
        whole = layer(x)
        close(torch.cat([layer(x[i : i + 1]) for i in range(len(x))]), whole, 1e-11)


def test_evaluation_follows_the_definition() -> None:
    layer, x = trained(), data(seed=8)
    m = floored(layer.mixture, layer.eps)
    flat = x.movedim(1, -1).reshape(-1, 6)
    log = m.weight.log() + torch.distributions.Normal(m.mean, m.var.sqrt()).log_prob(flat[:, None]).sum(2)
    tau = torch.softmax(log / 2, 1)
    z = (flat[:, None] - layer.running_mean) / torch.sqrt(layer.running_var + layer.eps)
    y = (tau / layer.running_weight.sqrt()).unsqueeze(2).mul(z).sum(1) * layer.weight + layer.bias
    with torch.no_grad():
        close(layer.eval()(x), y.detach().view(4, 5, 5, 6).movedim(-1, 1), 1e-10)


@pytest.mark.parametrize(
    "spec", ["mixture:k=4", "mixture:k=4,temperature=1", "mixture:k=4,posterior=channel", "mode:k=4"]
)
@pytest.mark.parametrize("case", ["constant", "identical", "one channel constant", "few", "outlier", "dead", "far"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_degenerate_batches_stay_finite(spec: str, case: str, dtype: torch.dtype) -> None:
    x = data((4, 6, 5, 5), dtype=torch.float32)
    if case == "constant":
        x = torch.full_like(x, 3.0)
    elif case == "identical":
        x = x[:1].repeat(4, 1, 1, 1)
    elif case == "one channel constant":
        x[:, 2] = -1.5
    elif case == "few":
        x = x[:3, :, :1, :1]
    elif case == "outlier":
        x[0, 0, 0, 0] = 1e4
    elif case == "dead":
        x = x.relu() * (torch.arange(6) < 3).view(1, -1, 1, 1)
    elif case == "far":
        x = 1000 + x
    x = x.to(dtype).requires_grad_()
    layer = norms.build(spec, 6)
    for _ in range(3):
        y = layer(x)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x)
        assert y.dtype == dtype
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(grad).all())
    assert all(bool(torch.isfinite(b).all()) for b in layer.buffers())
    with torch.no_grad():
        assert bool(torch.isfinite(layer.eval()(x)).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("spec", ["mixture:k=3", "mixture:k=3,posterior=channel", "gradients through the posteriors"])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(spec: str, bad: float) -> None:
    layer = norms.build(spec, 6) if ":" in spec else MixtureNorm(6, 3, grad_posterior=True)
    layer(data(dtype=torch.float32))
    before = copy.deepcopy(layer.state_dict())
    x = data(seed=3, dtype=torch.float32)
    x[1, 2, 3, 3] = bad
    with pytest.raises(NormInputError, match="not finite"):
        layer(x)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_a_single_position_is_refused_in_training_mode() -> None:
    with pytest.raises(NormInputError, match="MixtureNorm\\(6\\) in training mode cannot normalize"):
        MixtureNorm(6)(torch.randn(1, 6))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mixture:k=0", "at least 1"),
        ("mixture:temperature=warm", "channels"),
        ("mixture:temperature=-1", "greater than 0"),
        ("mixture:scale=big", "fisher, unit"),
        ("mixture:posterior=jiont", "joint, channel, sample"),
        ("mixture:posterior=sample,scale=unit", "no scale"),
        ("mixture:posterior=channel,temperature=x", "number"),
    ],
)
def test_wrong_parameters_are_explained(spec: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        norms.build(spec, 6)


def test_posterior_chooses_the_class() -> None:
    assert type(norms.build("mixture", 6)) is MixtureNorm
    assert type(norms.build("mixture:posterior=channel", 6)) is ChannelMixtureNorm
    assert type(norms.build("mixture:posterior=sample,k=2", 6)) is ModeNorm
    assert norms.build("mixture", 6).temperature == 6
    assert norms.build("mixture:temperature=1", 6).temperature == 1


def test_torch_shaped_classes_take_torchs_shapes() -> None:
    sequence = data((5, 6, 7))
    close(
        norms.MixtureNorm1d(6, 1).double()(sequence),
        nn.BatchNorm1d(6).double()(sequence),
    )
    assert norms.MixtureNorm1d(6).double()(data((9, 6))).shape == (9, 6)
    assert norms.MixtureNorm2d(6).double()(data()).shape == (4, 6, 5, 5)
    assert norms.MixtureNorm3d(6).double()(data((2, 6, 3, 3, 3))).shape == (2, 6, 3, 3, 3)
    for layer, x in (
        (norms.MixtureNorm1d(6), torch.randn(2, 6, 3, 3)),
        (norms.MixtureNorm2d(6), torch.randn(2, 6)),
        (norms.MixtureNorm3d(6), torch.randn(2, 6, 3, 3)),
    ):
        with pytest.raises(NormInputError, match="takes"):
            layer(x)


@pytest.mark.parametrize("scale", ["fisher", "unit"])
def test_from_batchnorm_keeps_the_trained_function(scale: str) -> None:
    bn = nn.BatchNorm2d(6, eps=1e-3).double()
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    for s in range(4):
        bn(data(seed=s))
    mixed = norms.MixtureNorm2d.from_batchnorm(bn.eval(), 3, scale=scale)
    assert not mixed.training
    x = data(seed=8)
    with torch.no_grad():
        close(mixed(x), bn(x), 1e-11)
    # the components are not copies of each other: training can separate them
    mixed.train()(x)
    assert torch.pdist(mixed.mixture_mean).min().item() > 0.01
    with pytest.raises(SpecError, match="running statistics"):
        norms.MixtureNorm2d.from_batchnorm(nn.BatchNorm2d(6, track_running_stats=False))
    with pytest.raises(SpecError, match="GroupNorm"):
        norms.MixtureNorm2d.from_batchnorm(nn.GroupNorm(2, 6))


def test_seeding_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    MixtureNorm(6)(data(dtype=torch.float32))
    assert torch.equal(before, torch.get_rng_state())


def test_a_loaded_layer_is_not_seeded_again() -> None:
    layer = trained()
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    twin = norms.build("mixture:k=3,temperature=2", 6).double()
    twin.load_state_dict(torch.load(stored))
    x = data(seed=11)
    close(twin(x), layer(x))
    for a, b in zip(twin.buffers(), layer.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_gradients_nor_statistics(reentrant: bool) -> None:
    plain, saved = trained(), trained()
    conv = nn.Conv2d(6, 6, 1).double()
    grads = []
    for layer, through in ((plain, False), (saved, True)):
        x = data(seed=4).requires_grad_()
        net = nn.Sequential(conv, layer)
        y = checkpoint(net, x, use_reentrant=reentrant) if through else net(x)
        y.square().sum().backward()
        grads.append(x.grad)
        conv.zero_grad()
    close(*grads)
    for a, b in zip(plain.buffers(), saved.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_half_precision_model_still_computes_in_float32() -> None:
    layer, twin = MixtureNorm(6, 3), MixtureNorm(6, 3)
    x = data(dtype=torch.float32).half()
    y = layer.half()(x)
    y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), twin(x.float()).detach(), rtol=2e-3, atol=2e-3)
    assert layer.weight is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float16


def test_autocast_computes_in_float32() -> None:
    layer, twin = MixtureNorm(6, 3), MixtureNorm(6, 3)
    x = data(dtype=torch.float32).bfloat16() + 20
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    want = twin(x.float())
    want.square().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), want.detach(), rtol=1e-2, atol=1e-2)
    assert torch.equal(layer.mixture_mean, twin.mixture_mean)


def test_gradients_can_go_through_the_posteriors() -> None:
    layer = MixtureNorm(4, 2, temperature=2.0, grad_posterior=True).double()
    layer(data((3, 4, 2, 2)))
    layer.momentum = None  # the mixture rests, so that finite differences see one function

    def f(x: Tensor) -> Tensor:
        layer.reset_running_stats()
        out: Tensor = layer(x)
        return out

    assert torch.autograd.gradcheck(f, data((3, 4, 2, 2), 2).requires_grad_())


def test_saved_memory_is_one_posterior_beyond_batch_norm() -> None:
    def saved_bytes(layer: nn.Module) -> int:
        seen: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(32, 16, 14, 14, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            kept = layer(x)
        assert kept.shape == x.shape
        return sum(seen.values())

    mixed, bn = MixtureNorm(16, 3), nn.BatchNorm2d(16)
    mixed(torch.randn(4, 16, 3, 3))
    extra = saved_bytes(mixed) - saved_bytes(bn)
    assert extra <= 32 * 14 * 14 * 4 * 4 + 4096  # the posteriors have a row of zeros: see mixture_kernel


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled_forward_equals_eager(training: bool) -> None:
    layer = trained().float().train(training)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager")
    for seed in range(2):
        x = data(seed=seed, dtype=torch.float32)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        one, two = compiled(a), eager(b)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        one.square().sum().backward()
        two.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.mixture_mean, eager.mixture_mean, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_evaluation_can_be_exported() -> None:
    layer = trained().float().eval()
    x = data(seed=3, dtype=torch.float32)
    exported = torch.export.export(layer, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-4)


def test_mixture_is_what_it_says_in_the_list() -> None:
    made = norms.recipe("mn:k=5")
    assert str(made.spec) == "mixture:k=5"
    assert made.uses_batch
    assert "k=5" in repr(made.norm(8))
    assert isinstance(made.norm(8).mixture, Mixture)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("2nd", [1]), ("first", [0]), ("last", [4]), ("0", [0]), ("0+2", [0, 2]), ("-1", [4]), ("block1.*", [1, 2]),
        ("1st+block2.1", [0, 4]), ("all", [0, 1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_a_spec_can_name_its_places(where: str, chosen: list[int]) -> None:
    def block(i: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)) if i else nn.Sequential(nn.BatchNorm2d(4))

    net = nn.Sequential()
    for i in range(3):
        net.add_module(f"block{i}", block(i))
    surgery.plan_swap(net, f"mixture:k=2,where={where}").apply()
    kinds = [type(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d | MixtureNorm)]
    assert [i for i, kind in enumerate(kinds) if kind is MixtureNorm] == chosen
    assert net(torch.randn(3, 4, 2, 2)).shape == (3, 4, 2, 2)


def test_places_by_stage_in_a_named_network() -> None:
    built = sources.build("resnet20", "mixture:k=2,where=stage:2", in_shape=(3, 16, 16))
    assert built.norm == "mixture:k=2,where=stage:2"
    found = [name for name, m in built.module.named_modules() if isinstance(m, MixtureNorm)]
    assert 0 < len(found) < len([m for m in built.module.modules() if isinstance(m, norms.BatchNorm)])
    assert built.plan is not None
    assert {s.stage for s in built.plan.swapped} == {2}


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda: norms.build("mixture:where=2nd", 4), SpecError, "names places in a network"),
        (lambda: surgery.plan_swap(nn.BatchNorm2d(4), "mixture:where=2nd", only=0), SwapError, "give one of them"),
        (lambda: surgery.plan_swap(nn.Sequential(nn.BatchNorm2d(4)), "mixture:where=2nd"), SwapError, "1 norms"),
        (lambda: surgery.plan_swap(nn.Sequential(nn.BatchNorm2d(4)), "mixture:where=stem"), SwapError, "fits no norm"),
    ],
)
def test_wrong_places_are_explained(act: Callable[[], object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        act()


@pytest.mark.parametrize("spec", ["mixture:k=3", "mixture:k=3,scale=unit", "mixture:k=2,posterior=channel"])
def test_a_batch_norms_checkpoint_loads_strictly(spec: str) -> None:
    def net(norm: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(6, 6, 1), norm)

    torch.manual_seed(0)
    old = net(nn.BatchNorm2d(6)).double()
    for p in old.parameters():
        nn.init.normal_(p)
    for s in range(3):
        old(data(seed=s))
    new = net(norms.build(spec, 6)).double()
    before = {name: v.clone() for name, v in old.state_dict().items()}
    new.load_state_dict(old.state_dict())
    assert all(torch.equal(before[name], v) for name, v in old.state_dict().items())
    with torch.no_grad():
        close(new.eval()(data(seed=8)), old.eval()(data(seed=8)), 1e-11)
    assert bool(torch.isfinite(new.train()(data(seed=9))).all())


def test_a_layer_can_be_copied_and_pickled_in_the_middle_of_training() -> None:
    layer = trained()
    x = data(seed=11)
    want = copy.deepcopy(layer)(x)
    close(pickle.loads(pickle.dumps(layer))(x), want)
    close(layer(x), want)


def by_autograd(layer: MixtureNorm, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output and gradients of a training pass in float64, written with autograd alone."""
    twin = copy.deepcopy(layer).double()
    z = x.detach().double().contiguous().requires_grad_()
    flat = rows(z)
    tau = posteriors(flat.detach(), floored(twin.mixture, twin.eps), twin.temperature)
    m = moments(flat, tau)
    normal = transform(flat, tau, m.mean, m.var, amplitude(m.share.detach(), twin.scale), twin.eps)
    y = twin.scale_and_shift(unrows(normal, z))
    y.backward(upstream.double())
    return [y.detach(), z.grad, *(p.grad for p in twin.parameters())]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


ODD: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], int]] = {
    "one position a map": ((64, 6, 1, 1), Tensor.contiguous, 3),
    "one image": ((1, 6, 9, 9), Tensor.contiguous, 3),
    "one large image": ((1, 6, 150, 150), Tensor.contiguous, 2),
    "images larger than a block": ((2, 8, 150, 150), Tensor.contiguous, 3),
    "one channel": ((8, 1, 9, 9), Tensor.contiguous, 3),
    "one channel, vectors": ((90, 1), Tensor.contiguous, 2),
    "channels last": ((8, 6, 9, 9), channels_last, 3),
    "channels last, blocks": ((16, 16, 30, 30), channels_last, 3),
    "strided": ((8, 12, 9, 18), lambda x: x[:, ::2, :, ::2], 5),
    "transposed": ((8, 6, 9, 5), lambda x: x.transpose(2, 3), 7),
    "tokens of a transpose": ((4, 6, 50), lambda x: x.transpose(1, 2), 8),
    "many positions": ((200_000, 2), Tensor.contiguous, 3),
    "many channels": ((4, 900, 3, 3), Tensor.contiguous, 1),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shapes_and_layouts_equal_autograd(name: str) -> None:
    shape, turned, k = ODD[name]
    x = turned(data(shape))
    layer = MixtureNorm(x.shape[-1 if x.ndim == 3 else 1], k).double()
    for _ in range(2):
        layer(x)
    upstream = data(tuple(x.shape), 1)
    want = by_autograd(layer, x, upstream)
    inside = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(inside)
    y.backward(upstream)
    for got, exact in zip([y.detach(), inside.grad, *(p.grad for p in layer.parameters())], want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-8 * float(exact.abs().max()))


def test_the_em_step_sees_all_parts_of_a_batch_that_is_sorted_by_source() -> None:
    """Three sources one after the other, in more positions than one EM step takes: no component may starve."""
    g = torch.Generator().manual_seed(3)
    centres = torch.tensor([-6.0, 0.0, 6.0]).repeat_interleave(16).view(48, 1, 1, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = MixtureNorm(4, 3)
        for _ in range(40):
            layer((centres + torch.randn(48, 4, 16, 16, generator=g)).contiguous(memory_format=layout))
        assert layer.mixture_weight.min().item() > 0.3
        order = layer.mixture_mean.mean(1).sort().values
        torch.testing.assert_close(order, torch.tensor([-6.0, 0.0, 6.0]), rtol=0, atol=0.3)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_from_batchnorm_takes_every_kind(kind: type[nn.Module], eps: float, affine: bool) -> None:
    bn: Any = kind(6, affine=affine, eps=eps, momentum=None).double()
    bn.running_mean.copy_(torch.linspace(-1, 1, 6))
    bn.running_var.copy_(torch.linspace(0.5, 2, 6))
    bn.eval()
    x = data(seed=8)
    for scale in ("fisher", "unit"):
        mixed = MixtureNorm.from_batchnorm(bn, 3, scale=scale)
        with torch.no_grad():
            close(mixed(x), bn(x), 1e-10)
        assert mixed.momentum == 0.1  # None would keep the components where they are
        assert mixed.sync == (kind is nn.SyncBatchNorm)
    if not affine:
        with pytest.raises(SpecError, match="affine=True"):
            MixtureNorm.from_batchnorm(bn, 3, affine=False)


def test_shapes_can_be_traced_on_the_meta_device() -> None:
    x = torch.empty(4, 6, 5, 5, device="meta")
    for spec in ("mixture:k=3", "mixture:k=3,posterior=channel", "mode:k=2"):
        layer = norms.build(spec, 6).to("meta")
        assert layer(x).shape == layer.eval()(x).shape == x.shape


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_evaluation_can_be_traced() -> None:
    layer = trained().float().eval()
    traced = torch.jit.trace(layer, data(seed=3, dtype=torch.float32))
    x = data((2, 6, 3, 3), seed=4, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-4)


def test_second_derivatives_and_other_component_counts_are_explained() -> None:
    layer, x = trained(), data(seed=4).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()
    soft = MixtureNorm(6, 3, grad_posterior=True).double()
    (first,) = torch.autograd.grad(soft(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    with pytest.raises(RuntimeError, match="size mismatch for mixture_weight"):
        MixtureNorm(6, 2).load_state_dict(layer.state_dict())


def test_frozen_parameters_stay_without_gradients() -> None:
    layer, x = trained().requires_grad_(False), data(seed=4).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.bias.requires_grad_()
    layer(data(seed=4)).sum().backward()
    close(layer.bias.grad, torch.full((6,), 100.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_component_that_nothing_belongs_to_leaves_gradients_finite(dtype: torch.dtype) -> None:
    layer = MixtureNorm(6, 3, temperature=1).to(dtype)
    layer(data(dtype=dtype))
    with torch.no_grad():
        layer.mixture_mean[2] = 1e5
        layer.mixture_weight.copy_(torch.tensor([0.5, 0.5, 0.0]))
    x = data(seed=1, dtype=dtype)
    want = by_autograd(layer, x, data(seed=2, dtype=dtype))
    inside = x.clone().requires_grad_()
    layer(inside).backward(data(seed=2, dtype=dtype))
    assert inside.grad is not None
    assert (inside.grad - want[1]).abs().max() < 1e-4 * want[1].abs().max()
