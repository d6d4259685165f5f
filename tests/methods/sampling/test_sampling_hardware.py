"""What goes to the device computes what the network computes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from layerscope.methods.sampling import (
    SamplingConv2d,
    SamplingError,
    SamplingLinear,
    SamplingWarning,
    export,
    firing_probability,
    fixed_point,
    save,
)
from layerscope.methods.sampling.hardware import fixed_point_rows


def net():
    torch.manual_seed(0)
    model = nn.Sequential(SamplingLinear(64, 12), SamplingLinear(64, 6, bias=False))
    nn.init.uniform_(model[0].beta, 0.3, 1.0), nn.init.uniform_(model[0].c, -0.4, 0.4)
    return model


@pytest.mark.parametrize("noise", ["gaussian:std=0.5", "bernoulli:p=0.5"])
def test_the_exported_device_follows_the_law_of_the_fixed_point_network(noise):
    model = net()
    (array, _) = export(model, bits=6, noise=noise)
    z = torch.where(torch.randn(64, generator=torch.Generator().manual_seed(1)) > 0, 1.0, -1.0).double()
    g = torch.Generator().manual_seed(2)
    draws = 6000
    if noise.startswith("gauss"):
        xi = torch.randn(draws, 12, 64, generator=g, dtype=torch.float64) * array.std + array.mean
    else:
        xi = (torch.rand(draws, 12, 64, generator=g) < array.mean).double()
    u = ((xi + array.offsets[:, None]) * array.weights.double() * z).sum(-1) + array.biases
    share = (u >= 0).double().mean(0)
    with fixed_point(model, 6):
        phi = firing_probability(model[0].pre_activation(z.float()[None]).double())[0].detach()
    error = (phi * (1 - phi) / draws).sqrt().clamp_min(0.5 / draws)
    assert float(((share - phi).abs() / error).max()) < 4


@pytest.mark.parametrize(("bits", "error"), [(2, 0.190), (3, 0.0441), (4, 0.0137), (8, 1e-4), (16, 1e-8)])
def test_integers_fit_and_point_the_same_way(bits, error):
    """The best uniform quantizer of 3, 7 and 15 levels leaves these shares of a normal variance (Max 1960)."""
    w = torch.randn(200, 400, generator=torch.Generator().manual_seed(0))
    q = fixed_point_rows(w, bits)
    assert q.abs().max() <= 2 ** (bits - 1) - 1
    cosine = torch.nn.functional.cosine_similarity(q.double(), w.double(), dim=1)
    assert float(1 - cosine.square().mean()) < 1.05 * error


def test_clipping_is_never_worse_than_the_whole_range():
    w = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    plain = (w / w.abs().amax(1, keepdim=True) * 3).round()
    cosine = torch.nn.functional.cosine_similarity
    gain = cosine(fixed_point_rows(w, 3).float(), w) - cosine(plain, w)
    assert (gain >= -1e-6).all()
    assert float(gain.mean()) > 0.02


def test_the_scale_of_a_row_is_irrelevant_and_zero_rows_stay():
    w = torch.randn(4, 10)
    assert torch.equal(fixed_point_rows(w * torch.tensor([[1e-6], [1.0], [8.0], [1e6]]), 5), fixed_point_rows(w, 5))
    assert (fixed_point_rows(torch.zeros(1, 10), 5) == 0).all()


def test_the_context_restores_to_the_bit_also_after_an_exception():
    model = net()
    weight = model[0].weight.detach().clone()
    with fixed_point(model, 3):
        assert not torch.equal(model[0].weight, weight)
    with pytest.raises(KeyError), fixed_point(model, 3):
        raise KeyError
    assert torch.equal(model[0].weight, weight)


def test_offsets_are_for_the_device_that_is_named():
    model = net()
    a, b = export(model, noise="bernoulli:p=0.25")[0], export(model)[0]
    assert (a.noise, b.noise) == ("bernoulli:p=0.25", "bernoulli:p=0.5")
    torch.testing.assert_close((a.offsets + 0.25) / (2**0.5 * a.std), model[0].beta.detach().double())
    assert torch.equal(a.weights, b.weights)
    assert (export(model)[1].biases == 0).all()


def test_normality_counts_the_effective_fan_in():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        layer = SamplingLinear(16, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :4] = 1
    with pytest.warns(SamplingWarning, match=r"1 of 1 units have n p \(1 - p\) below 3 with bernoulli:p=0\.5"):
        assert export(layer)[0].normality == pytest.approx(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(layer, noise="gaussian")


def test_a_file_holds_everything(tmp_path):
    arrays = export(nn.Sequential(SamplingConv2d(8, 3, 3)), bits=4)
    with np.load(save(arrays, tmp_path / "device.npz")) as content:
        assert sorted(content) == ["0/biases", "0/noise", "0/offsets", "0/weights"]
        assert content["0/weights"].shape == (3, 8, 3, 3)
        assert np.array_equal(content["0/weights"], arrays[0].weights.numpy())


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range(bits):
    with pytest.raises(SamplingError, match="2 to 16 bits"):
        export(net(), bits=bits)
