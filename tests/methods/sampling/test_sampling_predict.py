"""Many passes, averaged; and the measures of how far to trust them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerscope.methods.sampling import (
    Binarize,
    SamplingConv2d,
    SamplingError,
    SamplingLinear,
    auroc,
    firing_probability,
    mutual_information,
    negative_log_likelihood,
    predict,
    predictive_entropy,
    reliability,
    vote_share,
)


def net(seed=0):
    torch.manual_seed(seed)
    conv = SamplingConv2d(1, 4, 5, noise="gaussian")
    return nn.Sequential(Binarize(), conv, nn.Flatten(), SamplingLinear(64, 16), nn.Linear(16, 3))


X = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_shapes_and_consistency():
    p = predict(net(), X, samples=60, chunk=25, seed=0)
    assert p.probs.shape == p.variance.shape == (7, 3)
    torch.testing.assert_close(p.probs.sum(-1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(p.entropy, predictive_entropy(p.probs))
    assert ((p.mutual_information >= 0) & (p.mutual_information <= p.entropy)).all()
    assert ((p.vote_share >= 1 / 3) & (p.vote_share <= 1)).all()
    assert (p.samples == 60).all()
    assert not p.settled.any()
    assert p.accuracy(p.classes) == 1.0


def test_sharing_the_first_layer_changes_nothing_but_the_draws():
    a = predict(net(), X, samples=4000, chunk=400, seed=0)
    b = predict(net(), X, samples=4000, chunk=400, seed=1, share_first=False)
    error = ((a.variance + b.variance) / 4000).sqrt()
    assert float(((a.probs - b.probs).abs() / error).max()) < 4


def test_the_first_layer_runs_once_for_all_passes_of_a_chunk():
    model, rows = net(), []
    model[1].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    predict(model, X, samples=50, chunk=25)
    assert rows == [7, 7]
    assert model[1].copies == model[3].copies == 1


def test_the_monte_carlo_error_shrinks_as_one_over_root_s():
    model = net()
    truth = predict(model, X, samples=20000, chunk=1000, seed=99).probs
    errors = {}
    for s in (10, 1000):
        runs = torch.stack([predict(model, X, samples=s, chunk=1000, seed=k).probs for k in range(12)])
        errors[s] = float((runs - truth).square().mean().sqrt())
    assert errors[10] / errors[1000] == pytest.approx(10, rel=0.35)


def test_a_seed_decides_and_nothing_is_left_behind():
    model = net().train()
    state = torch.get_rng_state()
    a, b = predict(model, X, 30, seed=4), predict(model, X, 30, seed=4)
    assert torch.equal(a.probs, b.probs)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[1]._forward_pre_hooks


def test_batches_are_independent_of_their_size():
    a = predict(net(), X, 5000, chunk=500, batch_size=3, seed=0)
    b = predict(net(), X, 5000, chunk=500, seed=1)
    assert a.probs.shape == b.probs.shape
    assert float((a.probs - b.probs).abs().max()) < 0.05


class TestAdaptive:
    def easy_and_hard(self):
        """A network whose first output unit is nearly sure for one input and a coin for the other."""
        torch.manual_seed(0)
        model = nn.Sequential(SamplingLinear(16, 1, bias=False, noise="gaussian"), nn.Linear(1, 2))
        with torch.no_grad():
            model[0].weight.fill_(1.0)
            model[1].weight.copy_(torch.tensor([[3.0], [-3.0]]))
            model[1].bias.zero_()
        sure, coin = torch.ones(16), torch.ones(16)
        coin[::2] = -1
        return model, torch.stack([sure, coin])

    def test_easy_examples_stop_early_and_hard_ones_do_not(self):
        model, x = self.easy_and_hard()
        p = predict(model, x, samples=400, chunk=20, confidence=0.95, seed=0)
        assert p.settled.tolist() == [True, False]
        assert p.samples[0] < 60
        assert p.samples[1] == 400

    def test_settled_answers_are_wrong_no_more_often_than_promised(self):
        torch.manual_seed(0)
        model = net(3)
        x = torch.randn(300, 1, 8, 8)
        truth = predict(model, x, samples=4000, chunk=200, seed=1).classes
        p = predict(model, x, samples=400, chunk=20, confidence=0.9, seed=2)
        assert p.settled.any()
        assert float((p.classes != truth)[p.settled].double().mean()) <= 0.1

    @pytest.mark.parametrize("confidence", [0.3, 0.8])
    def test_the_bound_covers_where_the_truth_is_known(self, confidence):
        """One unit, two classes, closed form: class 0 is right exactly where the firing probability is above 1/2."""
        layer = SamplingLinear(64, 1, bias=False, noise="gaussian")
        head = nn.Linear(1, 2)
        with torch.no_grad():
            layer.weight.fill_(1.0), layer.beta.fill_(0.1)
            head.weight.copy_(torch.tensor([[4.0], [-4.0]])), head.bias.zero_()
        rows = torch.ones(64, 64).triu()[torch.arange(8, 57)]  # 8 to 56 of 64 inputs are +1, others -1
        x = (rows * 2 - 1).repeat(40, 1)
        phi = firing_probability(layer.pre_activation(x)).flatten()
        far = (phi - 0.5).abs() > 1e-6
        p = predict(nn.Sequential(layer, head), x, samples=300, chunk=10, confidence=confidence, seed=0)
        settled = p.settled & far
        wrong = (p.classes != (phi < 0.5).long())[settled].double()
        assert 0.1 < float(p.settled.double().mean()) < 1  # neither nothing nor everything is settled
        assert float(wrong.mean()) <= 1 - confidence
        # where the lead is large, few passes do; at a lead of nothing, none do
        assert p.samples[phi > phi.max() - 0.01].double().mean() < p.samples[(phi - 0.5).abs() < 0.05].double().mean()

    def test_the_bound_is_hoeffdings(self):
        model, x = self.easy_and_hard()
        n = int(predict(model, x[:1], samples=400, chunk=1, confidence=0.95, seed=0).samples[0])
        lead = math.tanh(3.0)  # softmax(3, -3), difference of the two
        needed = 2 * math.log(2 * 2 * 400 / 0.05) / lead**2
        assert n == math.floor(needed) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "at least 1"), ({"confidence": 1.0}, "between 0 and 1"), ({"chunk": 0}, "at least 1"),
        ({"samples": 2.5}, "samples must be a whole number"), ({"seed": 1.5}, "an integer or a torch.Generator"),
        ({"x": X[:0]}, "no example to predict"),
    ],
)  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(SamplingError, match=message):
        predict(net(), **{"x": X, **options})


def test_networks_that_cannot_be_predicted_with():
    with pytest.raises(SamplingError, match="no sampling layer"):
        predict(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(SamplingError, match=r"returns logits \[N, K\] with K of at least 2, got \(75, 1\)"):
        predict(nn.Sequential(SamplingLinear(16, 1)), torch.ones(3, 16))

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit, self.head = SamplingLinear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.unit(x) + x)

    with pytest.raises(SamplingError, match="use share_first=False"):
        predict(Skip(), torch.ones(3, 16))
    assert predict(Skip(), torch.ones(3, 16), share_first=False).probs.shape == (3, 3)


class TestMeasures:
    def test_entropy_and_information_at_the_ends(self):
        even = torch.full((1, 4), 0.25)
        sure = torch.eye(4)[:1]
        assert float(predictive_entropy(even)) == pytest.approx(math.log(4))
        assert float(predictive_entropy(sure)) == 0
        agree = torch.stack([even, even])
        assert float(mutual_information(agree)) == pytest.approx(0, abs=1e-12)
        disagree = torch.eye(2)[:, None]  # two passes, each sure of another class
        assert float(mutual_information(disagree)) == pytest.approx(math.log(2))
        assert float(vote_share(disagree)) == 0.5
        assert float(vote_share(torch.eye(2)[[0, 0, 0, 1]][:, None])) == 0.75

    def test_ece_against_a_plain_loop(self):
        g = torch.Generator().manual_seed(0)
        probs = torch.randn(500, 5, generator=g).mul(2).softmax(-1)
        labels = torch.randint(5, (500,), generator=g)
        want = 0.0
        conf, guess = probs.double().max(-1)
        for b in range(15):
            inside = (conf > b / 15) & (conf <= (b + 1) / 15)
            if inside.any():
                gap = (guess[inside] == labels[inside]).double().mean() - conf[inside].mean()
                want += float(gap.abs() * inside.double().mean())
        diagram = reliability(probs, labels)
        assert diagram.ece == pytest.approx(want)
        assert sum(diagram.count) == 500

    def test_nll_against_torch_and_scikit_learn(self):
        from sklearn.metrics import log_loss

        g = torch.Generator().manual_seed(0)
        logits, labels = torch.randn(50, 5, generator=g).double(), torch.randint(5, (50,), generator=g)
        got = negative_log_likelihood(logits.softmax(-1), labels)
        assert got == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
        assert got == pytest.approx(log_loss(labels.numpy(), logits.softmax(-1).numpy(), labels=range(5)))
        assert negative_log_likelihood(torch.eye(2)[[0]], torch.tensor([1])) == math.inf

    def test_reliability_against_scikit_learn(self):
        from sklearn.calibration import calibration_curve

        g = torch.Generator().manual_seed(1)
        probs, labels = torch.randn(800, 4, generator=g).softmax(-1), torch.randint(4, (800,), generator=g)
        confidence, guess = probs.double().max(-1)
        share, mean = calibration_curve((guess == labels).numpy(), confidence.numpy(), n_bins=10)
        diagram = reliability(probs, labels, bins=10)
        assert diagram.accuracy == pytest.approx(tuple(share))
        assert diagram.confidence == pytest.approx(tuple(mean))

    def test_ece_of_an_honest_and_of_a_boastful_predictor(self):
        g = torch.Generator().manual_seed(0)
        probs = torch.randn(40000, 3, generator=g).softmax(-1)
        labels = torch.multinomial(probs, 1, generator=g).flatten()
        assert reliability(probs, labels).ece < 0.015
        assert reliability(torch.eye(2)[[0] * 100], torch.ones(100, dtype=torch.int64)).ece == 1

    def test_auroc_against_every_pair_and_scikit_learn(self):
        from sklearn.metrics import roc_auc_score

        g = torch.Generator().manual_seed(0)
        a = torch.randint(6, (40,), generator=g).double()
        b = torch.randint(3, 9, (50,), generator=g).double()
        pairs = ((b[:, None] > a) + 0.5 * (b[:, None] == a)).double().mean()
        assert auroc(a, b) == pytest.approx(float(pairs))
        labels = [0] * 40 + [1] * 50
        assert auroc(a, b) == pytest.approx(roc_auc_score(labels, torch.cat([a, b]).numpy()))

    def test_bad_input(self):
        with pytest.raises(SamplingError, match="no NaN"):
            auroc(torch.tensor([math.nan]), torch.ones(2))
        with pytest.raises(SamplingError, match="at least one"):
            auroc(torch.ones(0), torch.ones(2))
        with pytest.raises(SamplingError, match=r"got \(3, 2\) and \(2,\)"):
            reliability(torch.ones(3, 2), torch.ones(2))
        with pytest.raises(SamplingError, match="take softmax of logits first"):
            reliability(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(SamplingError, match="labels must be integers from 0 to 1"):
            negative_log_likelihood(torch.full((3, 2), 0.5), torch.tensor([0, 1, 2]))
        with pytest.raises(SamplingError, match="at least one bin"):
            reliability(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64), bins=0)
