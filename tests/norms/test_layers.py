"""Each layer against its formula, written out in float64, and against torch's own layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import norms
from layerscope.errors import SpecError
from layerscope.norms import weights

EPS = 1e-5


def maps(n: int = 6, c: int = 8, side: int = 5, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, side, side, generator=g, dtype=torch.float64) * 2 + 0.7


def randomized(layer: nn.Module, seed: int = 3) -> nn.Module:
    layer = layer.double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.3)
    return layer


def col(p: Tensor | nn.Parameter | None) -> Tensor:
    assert p is not None
    return p.view(1, -1, 1, 1)


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_batch_is_torchs_batch_norm_in_both_modes_and_every_layout() -> None:
    ours, torchs = norms.build("batch", 8).double(), nn.BatchNorm2d(8).double()
    for seed in range(3):
        close(ours(maps(seed=seed)), torchs(maps(seed=seed)))
    close(ours.running_var, torchs.running_var)
    close(ours.eval()(maps()), torchs.eval()(maps()))
    tokens = maps().flatten(2).transpose(1, 2)
    close(norms.build("batch", 8).double()(tokens), nn.BatchNorm1d(8).double()(tokens.transpose(1, 2)).transpose(1, 2))
    assert isinstance(ours, nn.modules.batchnorm._BatchNorm)
    gained = norms.build("batch:gain=1.5", 8)
    assert gained.weight[0].item() == 1.5


def test_layer_is_group_norm_with_one_group_and_not_the_elementwise_layer_norm() -> None:
    ours, torchs = randomized(norms.build("layer", 8)), randomized(nn.GroupNorm(1, 8))
    close(ours(maps()), torchs(maps()))
    assert ours.weight.shape == (8,)
    vectors = maps()[:, :, 0, 0]
    close(randomized(norms.build("layer", 8))(vectors), randomized(nn.LayerNorm(8))(vectors))
    tokens = maps().flatten(2).transpose(1, 2)
    close(randomized(norms.build("layer", 8))(tokens), randomized(nn.LayerNorm(8))(tokens))


def test_instance_is_group_of_size_one_and_torchs_instance_norm() -> None:
    x = maps()
    close(norms.build("instance", 8).double()(x), norms.build("group:size=1", 8).double()(x))
    close(norms.build("instance", 8).double()(x), nn.InstanceNorm2d(8, affine=True).double()(x))
    tokens = x.flatten(2).transpose(1, 2)
    close(
        norms.build("instance", 8).double()(tokens),
        nn.InstanceNorm1d(8, affine=True).double()(tokens.transpose(1, 2)).transpose(1, 2),
    )


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_group_is_torchs_group_norm_by_size_or_count(groups: int) -> None:
    x, want = maps(), nn.GroupNorm(groups, 8).double()(maps())
    close(norms.build(f"group:groups={groups}", 8).double()(x), want)
    close(norms.build(f"group:size={8 // groups}", 8).double()(x), want)
    if groups == 1:
        close(norms.build("layer", 8).double()(x), want)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_unbiased_option_reproduces_the_authors_scaling(size: int) -> None:
    x = maps(side=3)
    m = size * 9
    grouped = x.view(6, 8 // size, -1)
    want = (grouped - grouped.mean(2, keepdim=True)) / torch.sqrt(grouped.var(2, keepdim=True, correction=1) + EPS)
    ours = norms.build(f"group:size={size},unbiased=true", 8).double()
    close(ours(x), want.view_as(x))
    plain = norms.build(f"group:size={size},eps=1e-30", 8).double()(x)
    tiny = norms.build(f"group:size={size},unbiased=true,eps=1e-30", 8).double()(x)
    close(tiny, plain * math.sqrt((m - 1) / m))


def test_frn_and_its_threshold() -> None:
    x, layer = maps(), randomized(norms.build("frn", 8))
    second = (x**2).mean((2, 3), keepdim=True)
    close(layer(x), col(layer.weight) * x / torch.sqrt(second + layer.learned_eps.abs()) + col(layer.bias))
    tlu = norms.recipe("frn").activation(8).double()
    close(tlu(x), F.relu(x))
    with torch.no_grad():
        tlu.tau.fill_(-0.5)
    close(tlu(x), x.clamp_min(-0.5))
    fixed = norms.build("frn:learn_eps=false", 8)
    assert "learned_eps" not in dict(fixed.named_parameters())
    with pytest.raises(norms.NormInputError, match="learn_eps=true"):
        fixed(torch.randn(2, 8))


def test_variance_divides_by_a_centred_deviation_and_does_not_centre() -> None:
    x, layer = maps(), randomized(norms.build("variance", 8))
    var = x.var((0, 2, 3), correction=0, keepdim=True)
    close(layer(x), col(layer.weight) * x / torch.sqrt(var + EPS) + col(layer.bias))
    unbiased = x.var((0, 2, 3), correction=1)
    close(layer.running_var, 0.9 * torch.ones(8).double() + 0.1 * unbiased)
    close(layer.eval()(x), col(layer.weight) * x / torch.sqrt(col(layer.running_var) + EPS) + col(layer.bias))


def test_mean_centres_and_does_not_rescale() -> None:
    x, layer = maps(), randomized(norms.build("mean", 8))
    close(layer(x), x - x.mean((0, 2, 3), keepdim=True) + col(layer.bias))
    close(layer.eval()(x), x - col(layer.running_mean) + col(layer.bias))


@pytest.mark.parametrize("unbiased", [False, True])
def test_evonorm_b0(unbiased: bool) -> None:
    spec = f"evonorm-b0:unbiased={str(unbiased).lower()}"
    x, layer = maps(), randomized(norms.build(spec, 8))
    batch = torch.sqrt(x.var((0, 2, 3), correction=0, keepdim=True) + EPS)
    instance = torch.sqrt(x.var((2, 3), correction=int(unbiased), keepdim=True) + EPS)
    den = torch.maximum(batch, col(layer.v) * x + instance)
    close(layer(x), col(layer.weight) * x / den + col(layer.bias))
    moving = torch.sqrt(col(layer.running_var) + EPS)
    den = torch.maximum(moving, col(layer.v) * x + instance)
    close(layer.eval()(x), col(layer.weight) * x / den + col(layer.bias))


def test_a_nan_does_not_spread_in_evonorm_b0() -> None:
    x, layer = maps(), norms.build("evonorm-b0", 8).double().eval()
    clean = layer(x)
    x[0, 0, 0, 0] = math.nan
    close(layer(x)[1:], clean[1:])


@pytest.mark.parametrize("unbiased", [False, True])
def test_evonorm_s0(unbiased: bool) -> None:
    spec = f"evonorm-s0:groups=2,unbiased={str(unbiased).lower()}"
    x, layer = maps(), randomized(norms.build(spec, 8))
    var = x.view(6, 2, -1).var(2, correction=int(unbiased)).repeat_interleave(4, 1).view(6, 8, 1, 1)
    want = col(layer.weight) * x * torch.sigmoid(col(layer.v) * x) / torch.sqrt(var + EPS) + col(layer.bias)
    close(layer(x), want)


def test_weight_norm_filters_have_norm_gain() -> None:
    conv = nn.Conv2d(5, 7, 3).double()
    raw = conv.weight.detach().clone()
    norms.recipe("weight").weight(conv)
    close(conv.weight, raw / (raw.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + EPS))
    gain = conv.parametrizations.weight[0].gain
    with torch.no_grad():
        gain.copy_(torch.arange(1.0, 8.0))
    torch.testing.assert_close(conv.weight.flatten(1).norm(dim=1), torch.arange(1.0, 8.0).double(), rtol=1e-4, atol=0)


def test_scaled_weight_standardization_keeps_the_variance_of_rectified_noise() -> None:
    conv = norms.recipe("sws").weight(nn.Conv2d(64, 32, 3, bias=False).double())
    w = conv.weight.detach()
    assert float(w.mean((1, 2, 3)).abs().max()) < 1e-8
    s = math.sqrt(2 * math.pi / (math.pi - 1))
    torch.testing.assert_close(w.flatten(1).norm(dim=1), torch.full((32,), s).double(), rtol=2e-3, atol=0)
    x = F.relu(torch.randn(64, 64, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert float(conv(x).detach()[..., 1:-1, 1:-1].var()) == pytest.approx(1.0, abs=0.1)


def test_weight_standardization_and_centring() -> None:
    linear = norms.recipe("ws-group:size=2").weight(nn.Linear(30, 8).double())
    close(linear.weight.mean(1), torch.zeros(8).double(), 1e-8)
    torch.testing.assert_close(linear.weight.std(1, correction=0), torch.ones(8).double(), rtol=1e-3, atol=0)
    conv = nn.ConvTranspose2d(4, 6, 3).double()
    raw = conv.weight.detach().clone()
    norms.recipe("weight-centred").weight(conv)
    close(conv.weight, raw - raw.mean((0, 2, 3), keepdim=True))


def test_weight_wrappers_refuse_what_they_cannot_wrap() -> None:
    sws = norms.recipe("sws")
    with pytest.raises(SpecError, match="BatchNorm2d"):
        sws.weight(nn.BatchNorm2d(3))
    with pytest.raises(SpecError, match="already"):
        sws.weight(sws.weight(nn.Conv2d(3, 4, 3)))
    with pytest.raises(SpecError, match="1 weight"):
        sws.weight(nn.Linear(1, 4))
    with pytest.raises(SpecError, match="groups=2"):
        sws.weight(nn.ConvTranspose2d(4, 4, 3, groups=2))


def test_scaled_activations_have_mean_zero_and_variance_one() -> None:
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for base in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU):
        y = norms.recipe("weight").activation(4, base)(z)
        assert float(y.mean()) == pytest.approx(0, abs=5e-3)
        assert float(y.var()) == pytest.approx(1, abs=1e-2)
    # the closed form for ReLU against the integration used for the others
    mean, std = weights.gaussian_moments(lambda: nn.LeakyReLU(0.0))
    assert (mean, 1 / std) == pytest.approx((0.3989422804, 1.7128584991), rel=1e-7)
    with pytest.raises(SpecError, match="constant"):
        weights.gaussian_moments(lambda: nn.Threshold(100.0, 0.0))
    assert isinstance(norms.recipe("weight:scaled=false").activation(4, nn.Tanh), nn.Tanh)


def test_rms_layer2d_and_scale_work_at_every_position() -> None:
    x = maps()
    rms, ln, sc = (randomized(norms.build(n, 8)) for n in ("rms", "layer2d", "scale"))
    close(rms(x), col(rms.weight) * x / torch.sqrt((x**2).mean(1, keepdim=True) + EPS))
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    close(ln(x), col(ln.weight) * (x - mean) / torch.sqrt(var + EPS) + col(ln.bias))
    close(sc(x), sc.scale * x / x.norm(dim=1, keepdim=True))
    tokens = x.flatten(2).transpose(1, 2)
    for layer in (rms, ln, sc):
        close(layer(tokens), layer(x).flatten(2).transpose(1, 2))
    close(rms(tokens), F.rms_norm(tokens, (8,), rms.weight, EPS))
    part = norms.build("rms:p=0.25", 8).double()
    with pytest.raises(SpecError, match="between one and all"):
        norms.RMSNorm(8, p=1.5)
    close(part(x), x / torch.sqrt((x[:, :2] ** 2).mean(1, keepdim=True) + EPS))


@pytest.mark.parametrize("n", [8, 14, 3])
def test_every_ghost_batch_is_normalized_by_itself(n: int) -> None:
    x, layer = maps(n), randomized(norms.build("ghost:size=4", 8))
    ghosts = max(1, n // 4)
    want = torch.empty_like(x)
    means, variances = [], []
    for g in range(ghosts):
        part = x[g::ghosts]
        want[g::ghosts] = F.batch_norm(part, None, None, layer.weight, layer.bias, True, eps=EPS)
        means.append(part.mean((0, 2, 3)))
        variances.append(part.var((0, 2, 3), correction=1))
    close(layer(x), want)
    close(layer.running_mean, 0.1 * torch.stack(means).mean(0))
    close(layer.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))


def test_renorm_is_batch_norm_first_and_evaluation_mode_at_the_end() -> None:
    torch.manual_seed(0)
    start, bn = norms.build("renorm", 8).double(), norms.build("batch", 8).double()
    close(start(maps()), bn(maps()), 1e-9)
    late = norms.build("renorm:rmax=1e6,dmax=1e6,ramp=0", 8).double()
    for seed in range(5):
        late(maps(seed=seed))
    mean, std = late.running_mean.clone(), torch.sqrt(late.running_var + EPS)
    x = maps(seed=9)
    close(late(x), (x - col(mean)) / col(std), 1e-9)
    close(late.eval()(x), (x - col(late.running_mean)) / torch.sqrt(col(late.running_var) + EPS))


def test_renorm_clips_its_corrections() -> None:
    layer = norms.build("renorm:rmax=2,dmax=0.5,ramp=0", 8).double()
    x = 30 * maps()
    b = F.batch_norm(x, None, None, None, None, True, eps=EPS)
    # the running statistics start at 0 and 1, far away: both corrections sit at their limits
    close(layer(x), 2 * b + 0.5 * col(x.mean((0, 2, 3)).sign()))


@pytest.mark.parametrize(
    ("spec", "shape", "said"),
    [
        ("batch", (1, 8), "BatchNorm.8. in training mode cannot normalize.*the batch, here 1 value.*larger batch"),
        ("instance", (4, 8, 1, 1), "InstanceNorm.8. cannot normalize.*the positions, here 1 value"),
        ("instance", (4, 8), "needs positions.*for vectors use layer"),
        ("group:size=1", (4, 8, 1, 1), "GroupNorm.8. cannot normalize.*one group of one sample"),
        ("variance", (1, 8, 1, 1), "VarianceNorm.8. in training mode cannot normalize"),
        ("ghost:size=1", (4, 8), "GhostBatchNorm.8. in training mode cannot normalize.*one ghost batch"),
        ("batch", (4, 3, 2, 2), "built for 8 channels but got 3: input shape"),
        ("rms", (8,), "takes .N, C."),
    ],
)
def test_what_has_no_statistics_is_refused_in_one_sentence(spec: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(norms.NormInputError, match=said):
        norms.build(spec, 8)(torch.randn(shape))


def test_sequences_with_channels_first_are_maps_of_width_one() -> None:
    x = maps().flatten(2)
    close(norms.ChannelsFirst1d(norms.build("instance", 8).double())(x), nn.InstanceNorm1d(8).double()(x))
    both = nn.BatchNorm1d(8).double()
    close(norms.ChannelsFirst1d(norms.build("batch", 8).double())(x), both(x))
    vectors = x[:, :, 0]
    close(norms.ChannelsFirst1d(norms.build("layer", 8).double())(vectors), nn.LayerNorm(8).double()(vectors))


def test_switchable_mixes_three_statistics_with_equal_weights_at_first() -> None:
    x, layer = maps(), norms.build("switchable", 8).double()
    means = [x.mean(a, keepdim=True) for a in ((2, 3), (1, 2, 3), (0, 2, 3))]
    variances = [x.var(a, correction=0, keepdim=True) for a in ((2, 3), (1, 2, 3), (0, 2, 3))]
    close(layer(x), (x - sum(means) / 3) / torch.sqrt(sum(variances) / 3 + EPS))
    with torch.no_grad():
        for logits in (layer.mean_logits, layer.var_logits):
            logits.copy_(torch.tensor([0.0, 60.0, 0.0]))
    close(layer(x), norms.build("layer", 8).double()(x), 1e-9)


def test_grn_is_an_identity_at_first() -> None:
    x, layer = maps(), norms.build("grn", 8).double()
    assert torch.equal(layer(x), x)
    layer = randomized(layer)
    g = x.flatten(2).norm(dim=2).view(6, 8, 1, 1)
    close(layer(x), col(layer.weight) * x * g / (g.mean(1, keepdim=True) + 1e-6) + col(layer.bias) + x)


def test_dyt_and_derf() -> None:
    x, dyt, derf = maps(), randomized(norms.build("dyt:alpha=0.7", 8)), randomized(norms.build("derf", 8))
    close(dyt(x), col(dyt.weight) * torch.tanh(dyt.alpha * x) + col(dyt.bias))
    close(derf(x), col(derf.weight) * torch.erf(derf.alpha * x + derf.shift) + col(derf.bias))
    assert norms.build("dyt:alpha=0.7", 8).alpha.item() == pytest.approx(0.7)


def test_proxy_recentres_what_it_would_see_from_a_normal_channel() -> None:
    made = norms.recipe("proxy:points=4096")
    act = randomized(made.activation(4))
    noise = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    proxy = act.proxy_shift + (1 + act.proxy_scale) * noise
    phi = F.relu(act.weight * proxy + act.bias)
    x = maps(c=4)
    y = F.relu(col(act.weight) * x + col(act.bias))
    want = (y - col(phi.mean(0))) / torch.sqrt(col(phi.var(0)) + 0.03)
    torch.testing.assert_close(act(x), want, rtol=2e-2, atol=2e-2)
    fresh = made.activation(4).double()(noise).detach()
    assert float(fresh.mean().abs()) < 5e-3
    assert made.norm(4).weight is None
