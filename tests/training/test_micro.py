"""A few steps that leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope import data, nets
from layerscope.errors import TrainingError
from layerscope.training import fit, micro_train

BATCH = data.batch("digits", 64)


def network() -> nn.Module:
    net = nets.build("resnet:blocks=1,width=4,skipinit=true", "batch", in_shape=(1, 8, 8))
    net.head = nn.Sequential(nn.Dropout(0.2), net.head)
    return net


def test_it_is_a_training_run_that_did_not_happen() -> None:
    net, trained = network(), network()
    net.stem.eval()
    x, y = BATCH
    nn.functional.cross_entropy(net(x), y).backward()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    identity = [id(p) for p in net.parameters()]
    generator = torch.random.get_rng_state()
    history = micro_train(net, BATCH, steps=5, batch_size=16, lr=0.1)
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in net.named_parameters())
    assert [id(p) for p in net.parameters()] == identity
    assert (net.training, net.stem.training) == (True, False)
    assert torch.equal(torch.random.get_rng_state(), generator)
    trained.load_state_dict(weights)
    assert fit(trained, BATCH, steps=5, batch_size=16, lr=0.1).losses == history.losses


@pytest.mark.parametrize("lr", [1e25, 0.05])
def test_a_divergence_is_seen_and_undone(lr: float) -> None:
    net = network()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    history = micro_train(net, BATCH, steps=8, batch_size=16, lr=lr)
    assert history.diverged == (lr > 1)
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


def test_a_failure_is_undone_too() -> None:
    net = network()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(TrainingError):
        micro_train(net, [BATCH, (BATCH[0], BATCH[1] + 100)], steps=2)
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
