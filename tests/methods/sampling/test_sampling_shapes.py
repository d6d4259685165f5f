"""Every shape of layer, precision, memory format and way of running it: the same law."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from layerscope.methods.sampling import (
    Binarize,
    SamplingConv2d,
    SamplingError,
    SamplingLinear,
    SamplingWarning,
    export,
    firing_probability,
    folded,
    sample,
    seeded,
    using_mode,
)


def signs(*shape, seed=0, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(dtype) * 2 - 1


PADDED = {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1}
SHAPES = {
    "pointwise": ({"in_channels": 6, "out_channels": 4, "kernel_size": 1}, (6, 5, 5)),
    "pointwise, padded": ({"in_channels": 6, "out_channels": 4, "kernel_size": 1, "padding": 1}, (6, 3, 3)),
    "depthwise": ({**PADDED, "in_channels": 6, "out_channels": 6, "groups": 6}, (6, 5, 5)),
    "grouped, more outputs": ({**PADDED, "in_channels": 4, "out_channels": 8, "groups": 2, "padding": 0}, (4, 5, 5)),
    "dilated, strided": ({**PADDED, "dilation": 2, "stride": 2, "padding": 2}, (2, 8, 7)),
    "oblong": ({**PADDED, "kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2)}, (2, 4, 6)),
    "same, even kernel": ({**PADDED, "kernel_size": 4, "padding": "same"}, (2, 5, 5)),
    "valid": ({**PADDED, "padding": "valid"}, (2, 5, 5)),
    "circular": ({**PADDED, "padding_mode": "circular"}, (2, 5, 5)),
    "reflect": ({**PADDED, "padding_mode": "reflect"}, (2, 5, 5)),
    "replicate": ({**PADDED, "padding_mode": "replicate"}, (2, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own layer
@pytest.mark.parametrize("name", SHAPES)
def test_convolutions_follow_the_physical_model(name):
    """Weights of every connection written out from torch's own convolution of unit inputs, in float64."""
    options, shape = SHAPES[name]
    torch.manual_seed(0)
    layer = SamplingConv2d(**options, noise="gaussian").double()
    nn.init.uniform_(layer.beta, 0.4, 0.9), nn.init.uniform_(layer.c, -0.3, 0.3)
    plain = nn.Conv2d(**options, bias=False).double()
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        n = math.prod(shape)
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        assert (plain(zero) == 0).all()
        matrix = plain(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).T  # [outputs, inputs]
        z = signs(1, *shape, dtype=torch.float64)
        u = matrix @ z.flatten()
    # Var(u): taps that read one input twice (reflect, replicate, circular) are connections of their own
    square = nn.Conv2d(**options, bias=False).double()
    with torch.no_grad():
        square.weight.copy_(layer.weight**2)
        spread = square(torch.ones(1, *shape, dtype=torch.float64)).flatten().sqrt()
        channel = torch.arange(layer.out_channels).repeat_interleave(len(u) // layer.out_channels)
        norm = layer.norm()[channel]
        beta, c = layer.beta[channel], layer.c[channel]
        want = (u * beta + c * norm) / spread
        p = layer.pre_activation(z).flatten()
    seen = spread > 0
    torch.testing.assert_close(p[seen], want[seen], rtol=1e-9, atol=1e-12)
    assert (p[~seen].sign() == c[~seen].sign()).all()  # a unit that sees nothing has no noise: sign of its bias
    assert (p[~seen].abs() > 5).all()
    with torch.no_grad(), using_mode(layer, "connection"), seeded(layer, 0):
        share = (layer(z.expand(600, *shape)) == 1).double().mean(0).flatten()
    phi = firing_probability(p)
    assert float(((share - phi).abs() / (phi * (1 - phi) / 600).sqrt().clamp_min(0.5 / 600)).max()) < 5


def test_an_input_of_zeros_leaves_the_sign_of_the_bias():
    layer = SamplingLinear(16, 3, variance="exact", noise="gaussian")
    with torch.no_grad():
        layer.c.copy_(torch.tensor([0.2, -0.2, 0.0]))
    zeros = torch.zeros(50, 16, requires_grad=True)
    for mode in ("marginal", "connection", "sign"):
        with using_mode(layer, mode):
            out = layer(zeros)
            assert (out == torch.tensor([1.0, -1.0, 1.0])).all()
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (zeros, *layer.parameters()))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_exact_variance_does_not_depend_on_the_scale_of_the_input(scale):
    layer = SamplingLinear(16, 8, variance="exact", noise="gaussian", bias=False)
    z = torch.randn(5, 16)
    torch.testing.assert_close(layer.pre_activation(z * scale), layer.pre_activation(z), rtol=1e-4, atol=1e-5)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
    @pytest.mark.parametrize("variance", ["norm", "border", "exact"])
    def test_half_precision_keeps_the_law_for_rows_of_any_length(self, dtype, scale, variance):
        torch.manual_seed(0)
        layer = SamplingConv2d(32, 4, 5, padding=0 if variance == "norm" else 2, variance=variance)
        with torch.no_grad():
            layer.weight.mul_(scale)
        z = signs(2, 32, 6, 6)
        half = copy.deepcopy(layer).to(dtype)
        with torch.no_grad():
            layer.load_state_dict(half.float().state_dict())  # the same rounded weights
            half.to(dtype)
            want = firing_probability(layer.pre_activation(z))
            got = firing_probability(half.pre_activation(z.to(dtype)))
        step = torch.finfo(dtype).eps
        # P is a sum of 800 products of rounded unit rows: relative error of its parts at most eps / 2, of random sign
        assert float((got - want).abs().max()) < 5 * step
        out = half(z.to(dtype))
        assert out.dtype == dtype
        out.float().sum().backward()
        assert torch.isfinite(half.weight.grad).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("variance", ["norm", "exact"])
    def test_autocast(self, dtype, variance):
        torch.manual_seed(0)
        layer = SamplingLinear(64, 8, variance=variance)
        z = signs(20, 64)
        with torch.autocast("cpu", dtype):
            p = layer.pre_activation(z)
            out = layer(z)
        torch.testing.assert_close(p, layer.pre_activation(z), atol=8 * torch.finfo(dtype).eps, rtol=0)
        out.sum().backward()
        assert layer.weight.grad.dtype == torch.float32

    def test_nothing_hides_a_nan(self):
        p = torch.tensor([0.5, math.nan, -0.5])
        assert sample(p).isnan().all()
        layer = SamplingLinear(16, 4)
        with torch.no_grad():
            layer.weight[1, 2] = math.nan
        for mode in ("marginal", "sign", "mean", "connection", "unit"):
            with using_mode(layer, mode):
                assert layer(signs(3, 16)).isnan().any()
        assert Binarize()(torch.tensor([math.nan, 2.0])).isnan().tolist() == [True, False]

    def test_bytes_are_binarized_to_floats(self):
        z = Binarize(128)(torch.tensor([0, 127, 128, 255], dtype=torch.uint8))
        assert z.tolist() == [-1, -1, 1, 1]
        assert z.dtype == torch.float32


class TestWaysOfRunning:
    def test_channels_last_and_batches_without_a_batch_axis(self):
        layer = SamplingConv2d(4, 6, 3, padding=1)
        z = signs(3, 4, 6, 6)
        last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            last.pre_activation(z.to(memory_format=torch.channels_last)), layer.pre_activation(z)
        )
        assert last(z.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
        for mode in ("marginal", "connection", "unit"):
            with using_mode(layer, mode):
                assert layer(z[0]).shape == (6, 6, 6)
                assert layer(z[:0]).shape == (0, 6, 6, 6)
        dense = SamplingLinear(16, 5)
        assert dense(signs(16)).shape == (5,)
        assert dense(signs(2, 7, 16)).shape == (2, 7, 5)
        with using_mode(dense, "connection"):
            assert dense(signs(2, 7, 16)).shape == (2, 7, 5)

    def test_copies_pickles_and_saved_weights(self):
        layer = SamplingConv2d(4, 6, 3, noise="gaussian:std=0.3", padding="same")
        z = signs(3, 4, 6, 6)
        with seeded(layer, 1):
            twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twins.append(torch.load(file, weights_only=False))
        for twin in twins:
            assert twin.generator is None
            assert twin.noise == layer.noise
            for mode in ("marginal", "connection", "unit"):
                with using_mode(layer, mode), using_mode(twin, mode):
                    with seeded(layer, 2):
                        want = layer(z)
                    with seeded(twin, 2):
                        assert torch.equal(twin(z), want)

    @pytest.mark.filterwarnings(
        "ignore:.*should not be instantiated:DeprecationWarning"
    )  # what torch.compile does itself
    def test_compiled_without_a_break(self):
        torch.manual_seed(0)
        net = nn.Sequential(SamplingConv2d(4, 6, 3, padding=1), nn.Flatten(), SamplingLinear(96, 8))
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        z = signs(5, 4, 4, 4)
        out = compiled(z)
        assert set(out.unique().tolist()) == {-1.0, 1.0}
        assert not torch.equal(compiled(z), out)
        out.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())

    def test_checkpointing_draws_the_same_noise_again(self):
        net = nn.Sequential(SamplingLinear(16, 12), SamplingLinear(12, 8))
        z, v = signs(5, 16).requires_grad_(), torch.randn(5, 8)

        def grads(run):
            torch.manual_seed(3)
            net.zero_grad()
            (run(z) * v).sum().backward()
            return [p.grad.clone() for p in net.parameters()]

        for a, b in zip(grads(net), grads(lambda x: checkpoint(net, x, use_reentrant=False)), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_gradients_per_sample(self):
        layer, z = SamplingLinear(16, 4), signs(5, 16)
        parameters = dict(layer.named_parameters())

        def loss(p, x):
            return torch.func.functional_call(layer, p, (x[None],)).sum()

        got = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")(parameters, z)
        for i in range(5):
            layer.zero_grad()
            layer(z[i : i + 1]).sum().backward()
            torch.testing.assert_close(got["weight"][i], layer.weight.grad)

    def test_a_generator_on_another_device_is_refused(self):
        class Elsewhere:
            device = torch.device("cuda")

        with (
            pytest.raises(SamplingError, match="generator is on cuda, a sampling layer on cpu"),
            seeded(SamplingLinear(16, 2), Elsewhere()),
        ):
            pass

    def test_several_samples_of_every_input_in_one_step(self):
        torch.manual_seed(0)
        net = nn.Sequential(Binarize(), SamplingLinear(16, 12), SamplingLinear(12, 8), nn.Linear(8, 3))
        x = torch.randn(5, 16)
        calls = []
        net[1].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        with folded(net, 4):
            out = net(x)
            again = net(x)
        assert out.shape == again.shape == (20, 3)
        assert calls == [5, 5]
        assert not torch.equal(out[:5], out[5:10])
        assert net(x).shape == (5, 3)
        # the gradient is the mean of that of single passes: in `sign` mode, where all are alike, exactly
        with using_mode(net, "sign"):
            with folded(net, 4):
                F.cross_entropy(net(x), torch.zeros(20, dtype=torch.long)).backward()
            many = net[1].weight.grad.clone()
            net.zero_grad()
            F.cross_entropy(net(x), torch.zeros(5, dtype=torch.long)).backward()
        torch.testing.assert_close(many, net[1].weight.grad)
        with pytest.raises(SamplingError, match="at least 1"), folded(net, 0):
            pass


LOCATED = SamplingConv2d(4, 4, 3, beta_shape="location", out_size=(3, 3))


class TestBadInput:
    def test_inputs_that_stop_being_binary_are_noticed_later_too(self):
        layer = SamplingLinear(16, 4)
        layer(signs(3, 16))
        with pytest.warns(SamplingWarning, match=r"put  Binarize\(\)  before it, or use  variance='exact'"):
            layer(0.5 * signs(3, 16))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(0.5 * signs(3, 16))  # once is enough

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: SamplingLinear(16, 4)(signs(3, 8)), r"needs inputs of shape \[N, \.\.\., 16\], got \(3, 8\)"),
            (lambda: SamplingConv2d(4, 4, 3)(signs(3, 2, 5, 5)), r"needs inputs of shape \[N, 4, H, W\]"),
            (lambda: SamplingConv2d(4, 4, 3, padding="sane"), "did you mean 'same'"),
            (lambda: SamplingConv2d(4, 4, 3, padding_mode="zero"), "did you mean 'zeros'"),
            (lambda: SamplingConv2d(4, 4, 3, stride=2, padding="same"), "needs stride 1"),
            (lambda: SamplingConv2d(4, 4, 3, padding=-1), "must not be negative"),
            (lambda: SamplingConv2d(4, 4, 0), "kernel_size must be at least 1"),
            (lambda: SamplingConv2d(4, 4, (3, 3, 3)), r"one number or two, got \(3, 3, 3\)"),
            (lambda: LOCATED(signs(1, 4, 9, 9)), "this one gives"),
        ],
    )  # fmt: skip
    def test_says_what_was_wrong(self, call, message):
        with pytest.raises(SamplingError, match=message):
            call()

    def test_a_row_of_zeros_cannot_be_exported_silently(self):
        layer = SamplingLinear(64, 4)
        with torch.no_grad():
            layer.weight[2] = 0
        with pytest.warns(SamplingWarning, match=r"unit\(s\) \[2\] have a weight row of zeros"):
            (array,) = export(layer)
        assert array.normality == 0
        assert all(torch.isfinite(v).all() for v in (array.offsets, array.biases))
