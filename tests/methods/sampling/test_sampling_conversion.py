"""Ordinary networks into sampling networks, and back."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerscope import data
from layerscope.methods.sampling import (
    Binarize,
    SamplingConv2d,
    SamplingError,
    convert,
    predict,
    sampling_layers,
    seeded,
)
from layerscope.training import fit

X = torch.randn(200, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.MaxPool2d(2), nn.GELU(), nn.Flatten(),
        nn.Linear(32, 16), nn.LayerNorm(16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 10),
    )  # fmt: skip


def test_what_becomes_of_each_layer():
    net = cnn()
    converted = convert(net, X, any_activation=True)
    assert [u.becomes for u in converted.units] == ["SamplingConv2d", "SamplingConv2d", "SamplingLinear", None]
    assert converted.units[3].note == "the network's output, which stays real"
    assert "takes the place of BatchNorm2d '1', ReLU '2'; inputs binarized at 0" in converted.units[0].note
    assert "LayerNorm '9', Tanh '11'" in str(converted)
    assert "10: dropout -> identity" in str(converted)
    kinds = [type(m) for m in net]
    assert kinds[0] is nn.Sequential
    assert [type(m) for m in net[0]] == [Binarize, SamplingConv2d]
    assert kinds[4] is SamplingConv2d
    assert all(kinds[i] is nn.Identity for i in (1, 2, 6, 9, 10, 11))
    assert isinstance(net[12], nn.Linear)
    assert net(X).shape == (200, 10)


def test_every_layer_sees_binary_inputs_and_has_the_target_spread():
    net = convert(cnn(), X, target=0.5, any_activation=True).model
    seen = {}
    for path, layer in sampling_layers(net):
        layer.register_forward_pre_hook(lambda m, args, path=path: seen.update({path: args[0]}))
    with torch.no_grad(), seeded(net, 0):
        net.eval()(X)
    for path, layer in sampling_layers(net):
        assert (seen[path].abs() == 1).all()
        p = layer.pre_activation(seen[path]).detach()
        axes = (0, 2, 3) if p.ndim == 4 else (0,)
        # each unit's std over 200 fresh inputs' samples, against the one that 200 others gave: both have the relative
        # error of a std from n normal values, 1 / sqrt(2 n); positions of one map only add to n
        error = 0.5 * math.sqrt(2 / (2 * len(X)))
        torch.testing.assert_close(p.std(axes), torch.full((p.shape[1],), 0.5), atol=4 * error, rtol=0)


def test_the_scale_and_shift_of_the_norm_are_taken_over():
    net, plain = cnn(), cnn()
    with torch.no_grad():
        net[1].weight.fill_(-2.0), net[1].bias.fill_(0.5)
    a, b = convert(net, X).model[0][1], convert(plain, X).model[0][1]
    torch.testing.assert_close(a.beta, -2 * b.beta)
    torch.testing.assert_close(a.c, -2 * b.c + 0.7 * 0.5)
    assert torch.equal(a.weight, b.weight)


def test_undo_restores_to_the_bit():
    net = cnn().eval()
    with torch.no_grad():
        before = net(X)
    modules, state = list(net.modules()), {k: v.clone() for k, v in net.state_dict().items()}
    converted = convert(net, X)
    assert converted.undo() is net
    assert list(net.modules()) == modules
    assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
    with torch.no_grad():
        assert torch.equal(net(X), before)


def test_real_inputs_may_stay_real():
    net = convert(cnn(), X, inputs="exact").model
    assert isinstance(net[0], SamplingConv2d)
    assert net[0].variance == "exact"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X)


def test_layers_behind_an_average_pool_get_the_exact_variance():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip
    convert(net, X)
    assert net[4].variance == "exact"
    assert net[0][1].variance == "norm"


def test_what_stays_says_why():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))
            self.unused, self.relu, self.act = nn.Linear(3, 3), nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.act(self.a(x))
            x = F.relu(self.b(x))
            x = self.relu(self.relu(self.c(x)))
            return self.d(x) + x

    units = {u.path: u for u in convert(Net(), torch.randn(20, 16)).units}
    assert units["a"].becomes == "SamplingLinear"
    assert "relu() in 'forward'" in units["b"].note
    assert "write it as a module, nn.ReLU()" in units["b"].note
    assert "also called where nothing is converted" in units["c"].note
    assert "add() in 'forward'" in units["d"].note
    assert "does not run it" in units["unused"].note


def test_every_layer_with_weights_is_listed_also_one_that_has_no_sampling_form():
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(36 * 4, 16))
    net = nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, padding=2), nn.ReLU(), nn.Flatten(), normed,
        nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    units = {u.path: u for u in convert(net, X).units}
    assert {p for p, u in units.items() if u.becomes} == {"0"}
    assert "nn.Linear and nn.Conv2d themselves" in units["2"].note
    assert "remove_parametrizations() first" in units["5"].note
    with pytest.raises(SamplingError, match=r"nn\.Linear and nn\.Conv2d themselves"):
        convert(nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.ReLU()), X)


def test_bad_input():
    with pytest.raises(SamplingError, match="at least 2 inputs"):
        convert(cnn(), X[:1])
    with pytest.raises(SamplingError, match="NaN or infinity"):
        convert(cnn(), X.clone().index_fill_(0, torch.tensor([3]), math.nan))
    with pytest.raises(SamplingError, match="it has no linear layer and no convolution"):
        convert(nn.Sequential(nn.LSTM(4, 4)), torch.randn(3, 5, 4))
    with pytest.raises(SamplingError, match="one tensor of inputs"):
        convert(cnn(), {"x": X})
    with pytest.raises(SamplingError, match="not 'round'"):
        convert(cnn(), X, inputs="round")
    with pytest.raises(SamplingError, match=r"no layer of Sequential can be converted: the network's output"):
        convert(nn.Sequential(nn.Linear(2, 2)), torch.randn(3, 2))


def test_a_converted_network_learns():
    train, test = data.load("digits"), data.load("digits", split="test")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    convert(net, train.x[:200])
    fit(net, train, steps=150, batch_size=64, optimizer="adamw", lr=5e-3, progress=False)
    assert predict(net, test.x, samples=20, seed=0).accuracy(test.y) > 0.8


class TestUnusualNetworks:
    def test_a_shared_activation_goes_where_all_its_places_are_converted(self):
        torch.manual_seed(0)
        act = nn.ReLU()
        net = nn.Sequential(nn.Linear(16, 20), act, nn.Linear(20, 20), nn.BatchNorm1d(20), act, nn.Linear(20, 3))
        units = convert(net, torch.randn(50, 16)).units
        assert [u.becomes for u in units] == ["SamplingLinear", "SamplingLinear", None]
        assert all(isinstance(net[i], nn.Identity) for i in (1, 3, 4))

    def test_and_stays_with_its_layers_where_it_also_stands_behind_a_sum(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.relu = nn.Linear(16, 16), nn.Linear(16, 16), nn.ReLU()
                self.c, self.act, self.head = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)

            def forward(self, x):
                x = self.relu(self.b(self.relu(self.a(x))) + x)
                return self.head(self.act(self.c(x)))

        net = Block()
        units = {u.path: u for u in convert(net, torch.randn(50, 16)).units}
        assert [p for p, u in units.items() if u.becomes] == ["c"]
        assert "also called where nothing is converted" in units["a"].note
        assert "add() in" in units["b"].note
        assert "its inputs are not all -1 or +1: exact variance" in units["c"].note
        assert net.c.variance == "exact"

    @pytest.mark.parametrize("act", [nn.GELU(), nn.LeakyReLU(0.1), nn.SiLU(), nn.PReLU()])
    def test_activations_that_no_step_resembles_are_refused_unless_asked_for(self, act):
        def net():
            return nn.Sequential(nn.Linear(16, 8), copy.deepcopy(act), nn.Linear(8, 3))

        with pytest.raises(SamplingError, match=rf"followed by {type(act).__name__}.*any_activation=True"):
            convert(net(), torch.randn(9, 16))
        assert convert(net(), torch.randn(9, 16), any_activation=True).units[0].becomes == "SamplingLinear"

    def test_a_norm_before_or_behind_the_activation(self):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(16, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Linear(16, 3),
        )  # fmt: skip
        convert(net, torch.randn(60, 16))
        assert isinstance(net[2], nn.BatchNorm1d)  # its outputs are no signs
        assert net[3].variance == "exact"
        assert all(isinstance(net[i], nn.Identity) for i in (1, 4, 5))
        assert torch.isfinite(net(torch.randn(4, 16))).all()

    def test_a_layer_norm_with_weights_per_position(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.LayerNorm([4, 8, 8]), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
        convert(net, X)
        assert torch.isfinite(net(X[:3])).all()

    @pytest.mark.parametrize(
        "options",
        [
            {"padding": "same"}, {"padding": 2, "padding_mode": "circular"}, {"padding": 1, "padding_mode": "reflect"},
            {"groups": 4}, {"dilation": 2, "padding": "same"}, {"stride": 2, "padding": 1}, {"bias": False},
        ],
    )  # fmt: skip
    def test_every_shape_of_convolution(self, options):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, **options), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(3)
        )
        with torch.no_grad():
            shape = net(X).shape
        convert(net, X, noise="gaussian")
        assert net(X).shape == shape
        assert net[2].padding_mode == options.get("padding_mode", "zeros")

    def test_undo_after_training_gives_the_old_network(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(144, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
        before = net[1].weight.clone()
        converted = convert(net, X)
        fit(net, (X, torch.arange(200) % 3), steps=2, batch_size=50, progress=False)
        converted.undo()
        assert torch.equal(net[1].weight, before)
        assert [type(m) for m in net[1:4]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]

    def test_train_flags_dtypes_and_frozen_weights_are_kept(self):
        net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
        net[0].weight.requires_grad_(False)
        convert(net, torch.randn(9, 16, dtype=torch.float64), inputs="exact")
        assert net[0].weight.dtype == torch.float64
        assert not net[0].weight.requires_grad
        assert not net[0].training
