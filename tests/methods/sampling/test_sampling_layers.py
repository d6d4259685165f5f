"""The law of the sampling unit, against the physical model, closed forms and float64 autograd."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layerscope.errors import SpecError
from layerscope.methods.sampling import (
    Binarize,
    Noise,
    SamplingConv2d,
    SamplingError,
    SamplingLinear,
    SamplingWarning,
    bernoulli,
    deterministic,
    firing_probability,
    gaussian,
    noise,
    sample,
    seeded,
    using_mode,
)


def signs(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=g) < 0.5).to(dtype) * 2 - 1


def linear(n=16, units=32, seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        layer = SamplingLinear(n, units, **options).to(dtype)
    with torch.no_grad():
        layer.beta.uniform_(0.3, 1.2)
        if layer.c is not None:
            layer.c.uniform_(-0.5, 0.5)
    return layer


def frequency(layer, z, draws, mode="connection", seed=0):
    """Share of +1 for one input, by drawing it many times in the physical model."""
    with torch.no_grad(), using_mode(layer, mode), seeded(layer, seed):
        out = layer(z.expand(draws, *z.shape[1:]))
    return (out == 1).double().mean(0)


def z_scores(share, phi, draws):
    return ((share - phi).abs() / (phi * (1 - phi) / draws).sqrt().clamp_min(0.5 / draws)).max()


class TestLaw:
    @pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 25, 100])
    def test_gaussian_noise_follows_it_at_every_fan_in(self, n):
        layer = linear(n, noise="gaussian:std=0.8")
        z = signs(1, n)
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(layer, z, 4000), phi, 4000) < 4

    @pytest.mark.parametrize(("p", "n"), [(0.5, 24), (0.25, 32), (0.75, 32), (0.1, 72), (0.02, 330)])
    def test_bernoulli_noise_follows_it_where_n_p_q_is_large(self, p, n):
        layer = linear(n, noise=bernoulli(p))
        assert layer.noise.normality(float(layer.effective_fan_in().min())) > 2.3  # about 3: weights are not all alike
        z = signs(1, n)
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(layer, z, 4000), phi, 4000) < 4

    @pytest.mark.parametrize(("p", "n", "error"), [(0.5, 12, 0.015), (0.25, 16, 0.025), (0.75, 16, 0.025)])
    def test_at_the_limit_its_error_is_known_from_every_outcome(self, p, n, error):
        """n p (1 - p) = 3, all 2^n outcomes of the noise weighed by their probability: no sampling error."""
        layer = linear(n, noise=bernoulli(p), dtype=torch.float64)
        z = signs(1, n, dtype=torch.float64)
        xi = ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()
        chance = (p**xi * (1 - p) ** (1 - xi)).prod(1)
        assert float(chance.sum()) == pytest.approx(1)
        with torch.no_grad():
            a = layer.beta * layer.noise.kappa - layer.noise.mean
            u = ((xi * z) @ layer.weight.T + a * (z @ layer.weight.T)) + layer.c * layer.noise.kappa * layer.norm()
            fires = ((u >= 0) * chance[:, None]).sum(0)
            wrong = (fires - firing_probability(layer.pre_activation(z))[0]).abs()
        assert 0.003 < float(wrong.max()) < error

    def test_bernoulli_noise_does_not_follow_it_where_n_p_q_is_small_and_says_so(self):
        with pytest.warns(SamplingWarning, match=r"n p \(1 - p\) = 1\.4, at least 3 is needed"):
            SamplingLinear(16, 32, noise="bernoulli:p=0.1")
        layer = linear(16, noise="bernoulli:p=0.1")
        z = signs(1, 16)
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(layer, z, 4000), phi, 4000) > 6

    def test_any_noise_of_finite_variance(self):
        uniform = Noise("uniform", 0.3, 1 / math.sqrt(12), lambda s, g, d: torch.rand(s, generator=g, device=d) - 0.2)
        layer = linear(64, noise=uniform)
        z = signs(1, 64)
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(layer, z, 4000), phi, 4000) < 4.5

    @pytest.mark.parametrize("mode", ["marginal", "unit"])
    def test_the_other_samplers_have_the_same_marginals(self, mode):
        layer = linear(64, noise="gaussian")
        z = signs(1, 64)
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(layer, z, 4000, mode), phi, 4000) < 4.5

    def test_noise_that_is_shared_between_units_correlates_them(self):
        layer = linear(16, noise="gaussian")
        z = signs(1, 16).expand(4000, -1)

        def correlation(mode):
            with torch.no_grad(), using_mode(layer, mode), seeded(layer, 0):
                c = torch.corrcoef(layer(z).T.double())
            return float(c.nan_to_num().abs().triu(1).sum() / (32 * 31 / 2))

        assert correlation("unit") > 3 * correlation("connection")

    def test_mean_and_variance_of_the_samples(self):
        layer = linear(16)
        z = signs(1, 16)
        with torch.no_grad(), seeded(layer, 0):
            out = layer(z.expand(20000, -1)).double()
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        torch.testing.assert_close(out.mean(0), 2 * phi - 1, atol=4.5 / math.sqrt(20000), rtol=0)
        torch.testing.assert_close(out.var(0), 1 - (2 * phi - 1) ** 2, atol=0.05, rtol=0)


class TestInvariance:
    @settings(deadline=None, max_examples=20)
    @given(st.floats(1e-3, 1e3), st.integers(0, 2**31))
    def test_the_scale_of_a_row_changes_nothing(self, s, seed):
        layer = linear(8, 4, seed=seed % 100)
        z = signs(64, 8, seed=seed % 7)
        before = firing_probability(layer.pre_activation(z))
        with torch.no_grad():
            layer.weight *= s
        assert float((firing_probability(layer.pre_activation(z)) - before).detach().abs().max()) < 1e-6

    def test_nor_do_the_samples_of_one_seed_for_a_power_of_two(self):
        layer, z = linear(), signs(50, 16)
        with seeded(layer, 3):
            before = layer(z)
        with torch.no_grad():
            layer.weight *= 64
        with seeded(layer, 3):
            assert torch.equal(layer(z), before)

    def test_the_gradient_is_orthogonal_to_the_row(self):
        layer = linear(dtype=torch.float64)
        with using_mode(layer, "mean"):
            layer(signs(20, 16, dtype=torch.float64)).pow(3).sum().backward()
        along = (layer.weight.grad * layer.weight).sum(1).abs().max()
        assert float(along.detach() / layer.weight.grad.norm()) < 1e-14

    def test_flipping_inputs_or_weights_flips_the_probability(self):
        layer, z = linear(bias=False), signs(20, 16)
        phi = firing_probability(layer.pre_activation(z))
        torch.testing.assert_close(firing_probability(layer.pre_activation(-z)), 1 - phi)
        with torch.no_grad():
            layer.weight *= -1
        torch.testing.assert_close(firing_probability(layer.pre_activation(z)), 1 - phi)

    @pytest.mark.parametrize("family", [gaussian(0.3), gaussian(2.0), bernoulli(0.2), bernoulli(0.5)])
    def test_offset_and_magnitude_are_inverse_and_the_law_ignores_the_noise(self, family):
        assert family.magnitude(family.offset(0.7)) == pytest.approx(0.7)
        a, b = linear(noise=family), linear(noise="gaussian")
        z = signs(5, 16)
        assert torch.equal(a.pre_activation(z), b.pre_activation(z))

    def test_offsets_of_the_paper(self):
        assert gaussian(0.5).offset(1.0) == pytest.approx(math.sqrt(2 * 0.25) - 1)
        assert bernoulli(0.25).offset(1.0) == pytest.approx(math.sqrt(2 * 0.25 * 0.75) - 0.25)


class TestGradient:
    def test_is_the_slope_of_the_mean_whatever_was_drawn(self):
        p = torch.linspace(-3, 3, 101, dtype=torch.float64, requires_grad=True)
        sample(p).sum().backward()
        torch.testing.assert_close(p.grad, 2 / math.sqrt(math.pi) * torch.exp(-(p.detach() ** 2)), rtol=1e-15, atol=0)

    @pytest.mark.parametrize("variance", ["norm", "exact"])
    def test_mean_mode_passes_gradcheck(self, variance):
        layer = linear(5, 3, dtype=torch.float64, variance=variance, mode="mean")
        z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True) if variance == "exact" else signs(4, 5).double()

        def f(w, beta, c, z):
            return torch.func.functional_call(layer, {"weight": w, "beta": beta, "c": c}, (z,))

        assert torch.autograd.gradcheck(f, (*layer.parameters(), z))

    @pytest.mark.parametrize("conv", [False, True])
    def test_second_derivatives_are_right(self, conv):
        """The norm of a row depends on the row: a backward pass that is itself differentiated has to know."""
        torch.manual_seed(0)
        layer = SamplingConv2d(2, 3, 2, mode="mean", noise="gaussian") if conv else linear(5, 3, mode="mean")
        layer.double()
        z = signs(2, 2, 3, 3).double() if conv else signs(4, 5).double()

        def f(w, beta, c, z):
            return torch.func.functional_call(layer, {"weight": w, "beta": beta, "c": c}, (z,))

        assert torch.autograd.gradgradcheck(f, (*layer.parameters(), z.requires_grad_()))
        marginal = sample(p := torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True))
        (slope,) = torch.autograd.grad(marginal.sum(), p, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), p)
        torch.testing.assert_close(curve, -2 * p.detach() * slope.detach())

    @pytest.mark.parametrize("mode", ["marginal", "sign", "connection", "unit"])
    def test_every_mode_has_the_gradient_of_the_mean_at_the_same_input(self, mode):
        layer, z = linear(dtype=torch.float64, noise="gaussian"), signs(10, 16, dtype=torch.float64).requires_grad_()
        v = torch.randn(10, 32, dtype=torch.float64)
        grads = {}
        for m in (mode, "mean"):
            with using_mode(layer, m):
                grads[m] = torch.autograd.grad((layer(z) * v).sum(), [z, *layer.parameters()])
        for a, b in zip(grads[mode], grads["mean"], strict=True):
            torch.testing.assert_close(a, b)

    def test_the_node_saves_p_and_nothing_else(self):
        p = torch.randn(10, requires_grad=True)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            sample(p)
        assert [t.data_ptr() for t in saved] == [p.data_ptr()]


class TestConvolution:
    def conv(self, **options):
        torch.manual_seed(0)
        layer = SamplingConv2d(3, 4, 3, **{"noise": "gaussian", **options})
        nn.init.uniform_(layer.beta, 0.4, 0.8)
        nn.init.uniform_(layer.c, -0.3, 0.3)
        return layer

    def test_a_full_size_kernel_is_a_linear_layer(self):
        conv = self.conv()
        z = signs(6, 3, 3, 3)
        dense = SamplingLinear(27, 4, noise="gaussian")
        with torch.no_grad():
            dense.weight.copy_(conv.weight.flatten(1)), dense.beta.copy_(conv.beta), dense.c.copy_(conv.c)
        torch.testing.assert_close(conv.pre_activation(z).flatten(1), dense.pre_activation(z.flatten(1)))

    @pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}])
    def test_every_position_is_unfold_and_linear(self, options):
        conv, z = self.conv(**options), signs(2, 3, 7, 7)
        rows = F.unfold(z, 3, conv.dilation, conv.padding, conv.stride).transpose(1, 2)
        w = conv.weight.flatten(1)
        want = rows @ (w / w.norm(dim=1, keepdim=True)).T * conv.beta + conv.c
        p = conv.pre_activation(z)
        torch.testing.assert_close(p.flatten(2).transpose(1, 2), want)

    @pytest.mark.parametrize("variance", ["border", "exact"])
    def test_padded_corners_follow_the_physical_model(self, variance):
        conv = self.conv(padding=1, variance=variance)
        z = signs(1, 3, 4, 4)
        phi = firing_probability(conv.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(conv, z, 1500), phi, 1500) < 4.8  # the largest of 64 scores

    def test_and_do_not_with_the_plain_norm_which_says_so(self):
        with pytest.warns(SamplingWarning, match="variance='border'"):
            conv = self.conv(padding=1, variance="norm")
        with torch.no_grad():
            conv.weight.abs_(), conv.beta.fill_(0.25), conv.c.zero_()
        z = torch.ones(1, 3, 4, 4)
        phi = firing_probability(conv.pre_activation(z).double())[0].detach()
        share = frequency(conv, z, 1500)
        assert float((share - phi)[:, 0, 0].min()) > 0.03
        assert z_scores(share[:, 1:3, 1:3], phi[:, 1:3, 1:3], 1500) < 4.8

    def test_grouped_convolution_in_the_physical_model(self):
        torch.manual_seed(0)
        conv = SamplingConv2d(4, 4, 3, groups=2, noise="gaussian")
        z = signs(1, 4, 3, 3)
        phi = firing_probability(conv.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(conv, z, 3000), phi, 3000) < 4

    def test_padding_chooses_the_border_variance(self):
        assert SamplingConv2d(3, 4, 3, padding=1).variance == "border"
        assert SamplingConv2d(3, 4, 3).variance == "norm"

    def test_one_magnitude_per_location(self):
        conv = self.conv(beta_shape="location", out_size=(5, 5))
        assert conv.beta.shape == (4, 5, 5)
        z = signs(1, 3, 7, 7)
        phi = firing_probability(conv.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(conv, z, 1500), phi, 1500) < 4.8
        for wrong in ({"beta_shape": "location"}, {"out_size": (5, 5)}):
            with pytest.raises(SamplingError, match="out_size"):
                self.conv(**wrong)


class TestAlwaysOn:
    def test_eval_still_samples(self):
        layer, z = linear().eval(), signs(40, 16)
        assert not torch.equal(layer(z), layer(z))
        assert set(layer(z).unique().tolist()) == {-1.0, 1.0}

    def test_a_seed_decides_and_leaves_the_global_generator_alone(self):
        layer, z = linear(), signs(40, 16)
        state = torch.get_rng_state()
        with seeded(layer, 5):
            a = layer(z)
        with seeded(layer, 5):
            assert torch.equal(layer(z), a)
        assert torch.equal(torch.get_rng_state(), state)
        assert layer.generator is None

    @pytest.mark.parametrize("mode", ["mean", "sign"])
    def test_the_deterministic_context(self, mode):
        net = nn.Sequential(linear(), linear(32, 4, mode="unit", noise="gaussian"))
        z = signs(40, 16)
        with deterministic(net, mode):
            out = net(z)
            assert torch.equal(out, net(z))
            assert (set(out.unique().tolist()) <= {-1.0, 1.0}) == (mode == "sign")
        assert [layer.mode for layer in net] == ["marginal", "unit"]

    def test_zero_is_positive(self):
        assert sample(torch.full((5,), 9.0)).tolist() == [1] * 5
        layer = linear(bias=False)
        with deterministic(layer, "sign"):
            assert (layer(torch.zeros(2, 16).masked_fill_(torch.zeros(2, 16) == 0, 1.0) * 0 + 1).abs() == 1).all()
        p = torch.zeros(3, requires_grad=True)
        from layerscope.methods.sampling.functional import hard_sign

        assert hard_sign(p).tolist() == [1, 1, 1]


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_small_probabilities_are_sampled_right_in_half_precision(self, dtype):
        p = torch.full((400_000,), -2.5, dtype=dtype)  # phi = 2.035e-4, below the step of a float16 uniform
        phi = 0.5 * (1 + math.erf(-2.5))
        g = torch.Generator().manual_seed(0)
        out = sample(p, g)
        assert out.dtype == dtype
        count = int((out == 1).sum())
        assert abs(count - 400_000 * phi) < 5 * math.sqrt(400_000 * phi)

    def test_a_layer_in_half_precision(self):
        layer = linear(dtype=torch.bfloat16)
        out = layer(signs(4, 16, dtype=torch.bfloat16))
        assert out.dtype == torch.bfloat16
        out.sum().backward()
        assert torch.isfinite(layer.weight.grad).all()


class TestExactVariance:
    def test_real_inputs_follow_the_physical_model(self):
        layer = linear(16, noise="gaussian", variance="exact")
        z = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
        phi = firing_probability(layer.pre_activation(z).double())[0].detach()
        assert z_scores(frequency(layer, z, 4000), phi, 4000) < 4.5

    def test_equals_the_norm_for_binary_inputs(self):
        a, b, z = linear(), linear(variance="exact"), signs(9, 16)
        torch.testing.assert_close(a.pre_activation(z), b.pre_activation(z))

    def test_an_input_of_zeros_gives_a_number(self):
        layer = linear(variance="exact")
        assert torch.isfinite(layer.pre_activation(torch.zeros(2, 16))).all()


class TestBadInput:
    def test_inputs_that_are_not_binary_are_warned_about_once_with_the_remedy(self):
        layer = linear()
        with pytest.warns(SamplingWarning, match=r"such as 0\.5\).*put  Binarize\(\)  before it, or use  variance="):
            layer(torch.full((2, 16), 0.5))
        layer(torch.full((2, 16), 0.5))

    def test_a_row_of_zeros_is_warned_about_and_gives_no_nan(self):
        layer = linear()
        with torch.no_grad():
            layer.weight[3] = 0
        with pytest.warns(SamplingWarning, match=r"unit\(s\) \[3\] have a weight row of zeros"):
            out = layer(signs(10, 16))
        out.sum().backward()
        assert torch.isfinite(out).all()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
        assert (layer.weight.grad[3] == 0).all()

    @pytest.mark.parametrize("p", [0, 1, -0.1, 1.5, math.nan])
    def test_p_outside_the_open_interval(self, p):
        with pytest.raises(SamplingError, match="0 < p < 1"):
            SamplingLinear(4, 4, noise=bernoulli(p))

    def test_integers_and_wrong_words(self):
        with pytest.raises(SamplingError, match="floating-point inputs"):
            linear()(torch.ones(2, 16, dtype=torch.int64))
        with pytest.raises(SamplingError, match="did you mean 'marginal'"):
            SamplingLinear(16, 4, mode="marginl")
        with pytest.raises(SpecError, match="did you mean 'bernoulli'"):
            noise("bernouli:p=0.5")
        with pytest.raises(SpecError, match="bernoulli takes p as numbers, not q=1"):
            noise("bernoulli:q=1")
        with pytest.raises(SamplingError, match="finite"):
            gaussian(0.0)
        with pytest.raises(SamplingError, match="at least 1"):
            SamplingLinear(0, 4)
        with pytest.raises(SamplingError, match="has no border"):
            SamplingLinear(16, 4, variance="border")
        with pytest.raises(SamplingError, match="groups=2 does not divide"):
            SamplingConv2d(3, 4, 3, groups=2)
        with pytest.raises(SamplingError, match="not 'marginal'"):
            deterministic(linear(), "marginal")
        with pytest.raises(SamplingError, match="has no sampling layer"), seeded(nn.Linear(2, 2), 0):
            pass


def test_effective_fan_in():
    layer = linear(16, 2)
    with torch.no_grad():
        layer.weight[0] = 1.0
        layer.weight[1] = torch.eye(16)[0]
    torch.testing.assert_close(layer.effective_fan_in(), torch.tensor([16.0, 1.0], dtype=torch.float64))


def test_binarize():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5], requires_grad=True)
    z = Binarize()(x)
    assert z.tolist() == [-1, -1, 1, 1]
    z.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1]
    assert Binarize(0.25)(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]


def test_state_dict_round_trip():
    a, b = linear(seed=0), linear(seed=1)
    b.load_state_dict(a.state_dict())
    assert sorted(a.state_dict()) == ["beta", "c", "weight"]
    z = signs(3, 16)
    assert torch.equal(a.pre_activation(z), b.pre_activation(z))
