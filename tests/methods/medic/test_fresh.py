from __future__ import annotations

import pytest
import torch
from torch import nn

from layerscope.methods.medic import MedicError, fresh_like, shared_past
from methods.medic.medic_nets import same, tiny


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 4))


def test_shares_nothing_with_the_model():
    model = tiny(width=32)
    for p in model.parameters():
        p.data.add_(0.01)
    model[1].running_mean.fill_(3.0)
    fresh = fresh_like(model, 0)
    theirs = {p.data_ptr() for p in model.parameters()}
    for (name, ours), old in zip(fresh.named_parameters(), model.parameters(), strict=True):
        assert ours.data_ptr() not in theirs, name
        assert not torch.equal(ours, old), name
    assert not fresh[1].running_mean.any()
    assert same(fresh_like(model, 0), fresh)
    assert not same(fresh_like(model, 1), fresh)


def test_global_generator_stays_as_it_is():
    before = torch.get_rng_state()
    fresh_like(tiny(), 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(3))
def test_same_seed_as_the_model_was_built_with_gives_other_weights(seed):
    model = tiny(seed, width=32)
    assert shared_past(fresh_like(model, seed), model) == {}
    assert set(shared_past(tiny(seed, width=32), model)) == {"3.weight"}


def test_wide_norm_gains_are_no_shared_past():
    assert shared_past(nn.BatchNorm2d(2000), nn.BatchNorm2d(2000)) == {}


def test_parameters_that_cannot_be_drawn_anew():
    with pytest.raises(MedicError, match=r"Token.*has no reset_parameters.*factory="):
        fresh_like(nn.Sequential(Token()), 0)

    class Lazy(Token):
        def reset_parameters(self) -> None:
            pass

    with pytest.raises(MedicError, match="leaves token as it was"):
        fresh_like(nn.Sequential(Lazy()), 0)
