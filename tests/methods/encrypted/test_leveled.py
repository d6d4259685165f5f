"""Noise: measured against the formula; legality of leveled evaluation."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from layerscope.methods.encrypted.circuits import activations
from layerscope.methods.encrypted.circuits.gates import Builder
from layerscope.methods.encrypted.circuits.neuron import Tap, neuron
from layerscope.methods.encrypted.leveled import Parameters, analyse
from layerscope.methods.encrypted.noise_lab import InsecureLab

#: the paper's level-1 noise, and the 128-bit choice of the TFHE library's 2020 revision at two bases
SETTINGS = [(3.29e-10, 8), (2.0**-26, 8), (2.0**-26, 7)]


@pytest.mark.parametrize(("noise", "base_bits"), SETTINGS)
@pytest.mark.parametrize("depth", [1, 64])
def test_chains_of_fresh_selectors_grow_linearly_as_predicted(noise, base_bits, depth):
    made = InsecureLab(Parameters(noise=noise, base_bits=base_bits)).chain(depth)
    assert made.measured == pytest.approx(made.predicted, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "base_bits"), SETTINGS)
def test_long_chains_grow_as_predicted(noise, base_bits):
    made = InsecureLab(Parameters(noise=noise, base_bits=base_bits)).chain(1024)
    assert made.measured == pytest.approx(made.predicted, rel=0.15)


def test_a_computed_selector_survives_once_at_the_papers_noise_and_not_at_128_bits():
    paper = InsecureLab(Parameters(noise=3.29e-10, base_bits=8))
    assert paper.nested(0).measured < 1e-4
    assert paper.nested(1).measured < 1 / 16
    assert paper.nested(1).measured == pytest.approx(Parameters(noise=3.29e-10, base_bits=8).nested_std(1), rel=0.15)
    assert paper.nested(2).measured > 0.25  # noise: a uniform torus element has 0.289
    for base_bits in (7, 8):
        secure = InsecureLab(Parameters(noise=2.0**-26, base_bits=base_bits))
        assert secure.nested(0).measured < 1e-3
        assert secure.nested(1).measured > 1 / 16


def test_budgets_follow_from_the_noise():
    assert Parameters(noise=3.29e-10, base_bits=8).nesting_budget() == 1
    assert Parameters(noise=2.0**-26, base_bits=8).nesting_budget() == 0
    assert Parameters(noise=2.0**-10).nesting_budget() == -1
    assert Parameters().chain_std(32768) == pytest.approx(7.8e-3, rel=0.01)


def test_the_lab_says_that_it_is_insecure_and_stores_no_key():
    lab = InsecureLab(Parameters(n=64))
    assert "insecure" in repr(lab)
    assert "insecure" in lab.chain(1).warning
    for store in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not to be stored"):
            store(lab)


def test_a_relu_is_legal_and_a_neuron_is_not():
    b = Builder()
    relu = analyse(b.build(activations.relu(b, b.word(8))))
    assert (relu.feasible, relu.nesting, relu.bootstraps_needed) == (True, 0, 0)
    sums = neuron([Tap(1 if i % 2 else -2, 0, 15) for i in range(9)], 3)
    found = analyse(sums)
    assert not found.feasible
    assert found.first_infeasible_gate is not None
    assert sums.is_and[found.first_infeasible_gate]
    assert found.first_infeasible_depth == 2
    assert 0 < found.bootstraps_needed <= sums.ands
    enough = analyse(sums, found.nesting)
    assert enough.feasible
    assert enough.bootstraps_needed == 0


def test_nesting_of_a_chain_of_ands_by_hand():
    """x0 x1 x2 ... taken one fresh bit at a time needs no nesting; (x0 x1)(x2 x3) needs one."""
    b = Builder()
    x = b.word(4)
    chain = b.and_(b.and_(b.and_(x[0], x[1]), x[2]), x[3])
    assert analyse(b.build([chain])).nesting == 0
    b = Builder()
    x = b.word(4)
    tree = b.build([b.and_(b.and_(x[0], x[1]), b.and_(x[2], x[3]))])
    assert analyse(tree).first_infeasible_gate == 2
    assert analyse(tree).nesting == 1
    assert analyse(tree, 1).feasible
    assert np.all(tree.is_and)
