"""Mixture normalization's mathematics against autograd, brute force and scikit-learn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from layerscope.norms.mixture_kernel import (
    MixtureTransform,
    near_mean,
    posterior_moments,
    posterior_table,
    rows,
    some_positions,
    unrows,
)
from layerscope.norms.mixture_math import (
    Mixture,
    Moments,
    amplitude,
    em_step,
    floored,
    moments,
    posteriors,
    seed_mixture,
    transform,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(k: int, c: int, seed: int = 0) -> Mixture:
    g = generator(seed)
    weight = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    mean = torch.randn(k, c, generator=g, dtype=torch.float64)
    return Mixture(weight / weight.sum(), mean, torch.rand(k, c, generator=g, dtype=torch.float64) + 0.3)


def sample(b: int, c: int, s: int, seed: int = 1) -> Tensor:
    return torch.randn(b, c, s, generator=generator(seed), dtype=torch.float64) * 1.3 + 0.2


def log_density(x: Tensor, m: Mixture) -> Tensor:
    """Mean over components, written out: x (M, C)."""
    normal = torch.distributions.Normal(m.mean, m.var.sqrt())
    return torch.logsumexp(m.weight.log() + normal.log_prob(x[:, None]).sum(2), 1)


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def random_tau(b: int, k: int, s: int, seed: int = 2) -> Tensor:
    return torch.softmax(2 * torch.randn(b, k, s, generator=generator(seed), dtype=torch.float64), 1)


def test_posteriors_are_bayes_rule() -> None:
    x, m = sample(3, 4, 5), mixture(3, 4)
    flat = x.transpose(1, 2).reshape(-1, 4)
    joint = m.weight.log() + torch.distributions.Normal(m.mean, m.var.sqrt()).log_prob(flat[:, None]).sum(2)
    want = torch.softmax(joint, 1).view(3, 5, 3).transpose(1, 2)
    close(posteriors(x, m), want)
    tempered = torch.softmax(joint / 4, 1).view(3, 5, 3).transpose(1, 2)
    close(posteriors(x, m, 4.0), tempered)


def test_fisher_identity() -> None:
    """The transform is the mean part of the mixture's Fisher vector, by autograd on the log-density."""
    x, m = sample(2, 4, 6), mixture(3, 4)
    flat = x.transpose(1, 2).reshape(-1, 4)
    mean = m.mean.clone().requires_grad_()
    want = torch.zeros_like(flat)
    for i in range(len(flat)):
        (slope,) = torch.autograd.grad(log_density(flat[i : i + 1], m._replace(mean=mean)).sum(), mean)
        want[i] = (m.var.sqrt() / m.weight.sqrt().unsqueeze(1) * slope).sum(0)
    y = transform(x, posteriors(x, m), m.mean, m.var, m.weight.rsqrt().unsqueeze(1), 0.0)
    close(y.transpose(1, 2).reshape(-1, 4), want)


def test_one_hot_posteriors_normalize_every_group_by_itself() -> None:
    x = sample(4, 5, 6)
    label = torch.randint(3, (4, 6), generator=generator(3))
    tau = torch.nn.functional.one_hot(label, 3).transpose(1, 2).double()
    m = moments(x, tau)
    y = transform(x, tau, m.mean, m.var, amplitude(m.share, "fisher"), 0.0)
    flat, out = x.transpose(1, 2)[..., :], y.transpose(1, 2)
    for k in range(3):
        group = flat[label == k]
        want = (group - group.mean(0)) / group.std(0, correction=0) / math.sqrt(len(group) / label.numel())
        close(out[label == k], want)


def test_mean_is_zero_for_any_posterior() -> None:
    x, tau = sample(4, 5, 6), random_tau(4, 3, 6)
    m = moments(x, tau)
    y = transform(x, tau, m.mean, m.var, torch.rand(3, 1, dtype=torch.float64), 1e-3)
    assert y.mean((0, 2)).abs().max().item() < 1e-14


@pytest.mark.parametrize(("scale", "factor"), [("fisher", 1.0), ("unit", None)])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_separated_components_give_standard_deviation_sqrt_k(k: int, scale: str, factor: float | None) -> None:
    g = generator(5)
    centres = 40 * torch.randn(k, 6, generator=g, dtype=torch.float64)
    label = torch.randint(k, (6000,), generator=g)
    x = (centres[label] + torch.randn(6000, 6, generator=g, dtype=torch.float64)).t().unsqueeze(0)
    tau = torch.nn.functional.one_hot(label, k).t().unsqueeze(0).double()
    m = moments(x, tau)
    y = transform(x, tau, m.mean, m.var, amplitude(m.share, scale), 0.0)
    assert y.std().item() == pytest.approx(math.sqrt(k) if factor else 1.0, rel=1e-2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_closed_form_backward_passes_gradcheck(channels_last: bool) -> None:
    x = torch.randn(3, 4, 2, 3, generator=generator(), dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    tau = random_tau(*((1, 3, 18) if channels_last else (3, 3, 6)))
    alpha = torch.tensor([[0.7], [1.9], [3.0]], dtype=torch.float64)
    weight = torch.linspace(0.5, 2, 4, dtype=torch.float64).requires_grad_()
    bias = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()

    def f(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        m = moments(rows(z.detach()), tau)
        out: Tensor = MixtureTransform.apply(z, w, b, tau, m, alpha, torch.ones(4).double(), 0.3, None)
        return out

    assert torch.autograd.gradcheck(f, (x.requires_grad_(), weight, bias))


@pytest.mark.parametrize("shape", [(9, 4), (5, 3, 4), (3, 4, 5, 2), (3, 4, 2, 2, 2), (1, 4, 6, 6)])
@pytest.mark.parametrize("block", [10, 1000])
def test_blocked_passes_equal_the_readable_form(
    shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerscope.norms.mixture_kernel.BLOCK", block)
    layouts = [torch.contiguous_format] + ([torch.channels_last] if len(shape) == 4 else [])
    for layout in layouts:
        x = torch.randn(shape, generator=generator(4), dtype=torch.float64).contiguous(memory_format=layout)
        x.requires_grad_()
        weight = torch.linspace(0.5, 2, 4, dtype=torch.float64)
        m = mixture(3, 4)
        centre = torch.linspace(-1, 1, 4, dtype=torch.float64)  # any: the result must not depend on it
        padded, batch = posterior_moments(rows(x.detach()), 3, posterior_table(m, centre, 1e-3) / 2, centre)
        tau = padded[:, :3]
        assert not padded[:, 3:].any()
        alpha = amplitude(batch.share, "fisher")
        upstream = torch.randn(shape, generator=generator(6), dtype=torch.float64)
        y = MixtureTransform.apply(x, weight, weight - 1, padded, batch, alpha, centre, 1e-3, None)
        (got,) = torch.autograd.grad(y, x, upstream)

        plain_tau = posteriors(rows(x), floored(m, 1e-3), 2.0).detach()
        plain = moments(rows(x), plain_tau)
        z = unrows(transform(rows(x), plain_tau, plain.mean, plain.var, alpha, 1e-3), x)
        axis = -1 if len(shape) in (2, 3) else 1
        shaped = weight if axis == -1 else weight.view(1, -1, *[1] * (len(shape) - 2))
        want_y = z * shaped + shaped - 1
        (want,) = torch.autograd.grad(want_y, x, upstream)
        close(tau, plain_tau)
        for a, b in zip(batch, plain, strict=True):
            close(a, b.detach(), 1e-11)
        close(y, want_y, 1e-11)
        close(got, want, 1e-11)
        assert got.stride() == x.stride()


@pytest.mark.parametrize("steps", [1, 4])
def test_em_is_scikit_learns(steps: int) -> None:
    start = mixture(3, 4)
    x = sample(1, 4, 300)[0].t().contiguous()
    reference = GaussianMixture(
        3,
        covariance_type="diag",
        max_iter=steps,
        tol=0,
        reg_covar=0,
        weights_init=start.weight.numpy(),
        means_init=start.mean.numpy(),
        precisions_init=(1 / start.var).numpy(),
    )
    with pytest.warns(Warning, match="did not converge"):
        reference.fit(x.numpy())
    ours = start
    for _ in range(steps):
        ours, _ = em_step(x, ours)
    close(ours.weight, torch.tensor(reference.weights_), 1e-9)
    close(ours.mean, torch.tensor(reference.means_), 1e-9)
    close(ours.var, torch.tensor(reference.covariances_), 1e-9)
    _, likelihood = em_step(x, ours)
    assert likelihood == pytest.approx(reference.score(x.numpy()), rel=1e-10)


def test_likelihood_never_falls() -> None:
    m, x = mixture(4, 3, 7), sample(1, 3, 400, 8)[0].t()
    history = []
    for _ in range(30):
        m, likelihood = em_step(x, m)
        history.append(likelihood)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(history))
    assert history[-1] > history[0]


def test_the_order_of_components_does_not_matter() -> None:
    x, m, order = sample(3, 4, 5), mixture(3, 4), torch.tensor([2, 0, 1])
    shuffled = Mixture(*(t[order] for t in m))
    out = []
    for each in (m, shuffled):
        tau = posteriors(x, each)
        b = moments(x, tau)
        out.append(transform(x, tau, b.mean, b.var, amplitude(b.share, "fisher"), 1e-5))
    close(out[0], out[1])


def test_channel_wise_affine_maps_are_forgotten_for_fixed_posteriors() -> None:
    x, tau = sample(3, 4, 5), random_tau(3, 3, 5)
    stretched = x * torch.tensor([0.1, 5.0, 30.0, 2.0]).view(1, -1, 1) + torch.arange(4.0).view(1, -1, 1)
    out = []
    for each in (x, stretched):
        m = moments(each, tau)
        out.append(transform(each, tau, m.mean, m.var, amplitude(m.share, "fisher"), 0.0))
    close(out[0], out[1], 1e-10)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_float32_posteriors_survive_an_offset(offset: float) -> None:
    m = mixture(3, 32)
    m = Mixture(m.weight, offset + 0.3 * m.mean, 0.25 * m.var)
    x = sample(4, 32, 50) * 0.5 + offset
    centre, near = x.mean((0, 2)), near_mean(x.float(), 20)
    exact, batch = posterior_moments(x, 3, posterior_table(m, centre, 0.0), centre)
    narrow = Mixture(*(t.float() for t in m))
    single, moments32 = posterior_moments(x.float(), 3, posterior_table(narrow, near, 0.0), near)
    torch.testing.assert_close(single[:, :3].double(), exact[:, :3], rtol=0, atol=2e-4)
    torch.testing.assert_close(moments32.var.double(), batch.var, rtol=2e-3, atol=1e-5)


def test_a_component_without_mass_keeps_what_it_had() -> None:
    far = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[0.0], [1e6]]), torch.ones(2, 1))
    x = torch.randn(50, 1, generator=generator())
    after, likelihood = em_step(x, far)
    assert after.mean[1].item() == 1e6
    assert math.isfinite(likelihood)
    tau, batch = posterior_moments(x.t().unsqueeze(0), 2, posterior_table(far, x.mean(0), 0.0), x.mean(0))
    assert batch.mass[1].item() == 0
    assert bool(torch.isfinite(torch.cat([t.flatten() for t in (tau, *batch)])).all())
    assert amplitude(batch.share, "fisher").max().item() == pytest.approx(10.0)


def test_floors_keep_variances_and_shares_from_zero() -> None:
    m = floored(Mixture(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.zeros(2, 2)), 1e-5)
    assert m.weight.min().item() > 0.005
    assert m.weight.sum().item() == pytest.approx(1)
    assert m.var.min().item() > 0.9e-5


def test_seeding_finds_separated_clusters_and_leaves_the_global_generator_alone() -> None:
    g = generator(9)
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    label = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 2000, replacement=True, generator=g)
    x = centres[label] + torch.randn(2000, 2, generator=g)
    before = torch.get_rng_state()
    fitted = seed_mixture(x, 3, generator(1))
    assert torch.equal(before, torch.get_rng_state())
    order = torch.cdist(centres, fitted.mean).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(fitted.mean[order], centres, rtol=0, atol=0.3)
    torch.testing.assert_close(fitted.weight[order], torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.05)
    again = seed_mixture(x, 3, generator(1))
    assert all(torch.equal(a, b) for a, b in zip(fitted, again, strict=True))


def test_several_starts_find_what_one_start_misses() -> None:
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0], [12.0, 0.0], [12.0, 6.0]])
    missed = {1: 0, 6: 0}
    for seed in range(8):
        g = generator(seed)
        x = centres[torch.randint(6, (900,), generator=g)] + 0.5 * torch.randn(900, 2, generator=g)
        for starts in missed:
            fitted = seed_mixture(x, 6, generator(seed + 100), starts=starts)
            missed[starts] += torch.cdist(centres, fitted.mean).min(1).values.max().item() > 1
    assert missed[6] == 0
    assert missed[1] > 0


@pytest.mark.parametrize(
    "x", [torch.zeros(20, 3), torch.ones(2, 3) * 5, torch.cat([torch.zeros(99, 3), torch.full((1, 3), 1e4)])]
)
def test_seeding_survives_degenerate_samples(x: Tensor) -> None:
    fitted = seed_mixture(x, 4, generator(0))
    assert all(bool(torch.isfinite(t).all()) for t in fitted)
    assert fitted.weight.sum().item() == pytest.approx(1, abs=1e-5)


def test_moments_are_a_named_tuple_of_the_documented_shapes() -> None:
    m = moments(sample(3, 4, 5), random_tau(3, 2, 5))
    assert isinstance(m, Moments)
    assert m.mass.shape == (2,)
    assert m.mean.shape == m.var.shape == (2, 4)
    assert m.share.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    "shape", [(64, 2, 784), (64, 1, 64), (97, 2, 196), (5, 2, 3000), (3000, 2, 4), (2, 2, 50000), (1, 2, 9000)]
)
def test_the_positions_of_an_em_step_are_spread_over_samples_and_places(shape: tuple[int, ...]) -> None:
    b, c, s = shape
    ids = torch.arange(b * s).view(b, 1, s).expand(b, c, s).contiguous()
    if b == 1:
        ids = ids.transpose(1, 2).contiguous().transpose(1, 2)  # as channels-last memory comes
    seen: set[int] = set()
    for turn in range(8):
        few = some_positions(ids, 2048, turn)
        assert (few[:, :1] == few).all()  # all channels from the same position
        chosen = few[:, 0].flatten().tolist()
        assert len(set(chosen)) == len(chosen)
        assert 1500 <= len(chosen) <= 3100
        assert len({i % s for i in chosen}) >= min(s, 16)
        assert len({i // s for i in chosen}) >= 7 / 8 * b
        seen.update(chosen)
    assert len({i // s for i in seen}) == b
    assert len(seen) > min(1.5 * 2048, 0.99 * b * s)
    assert some_positions(ids, b * s, 0) is ids
