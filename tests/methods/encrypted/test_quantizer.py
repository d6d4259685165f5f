"""The log quantiser: laws, exact thresholds, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.methods.encrypted.errors import QuantizationError
from layerscope.methods.encrypted.quantizer import exponent_count, log_quantize

weights = st.lists(
    st.floats(-100, 100, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=6, max_size=6
)
modes = st.sampled_from(["log", "linear"])
law = settings(deadline=None, max_examples=60)


@law
@given(weights, st.integers(2, 5), modes, st.booleans())
def test_idempotent_sign_symmetric_and_zero_stays_zero(values, bits, rounding, per_channel):
    w = torch.tensor(values).view(2, 3)
    once = log_quantize(w, bits, rounding=rounding, per_channel=per_channel)
    again = log_quantize(once.dequantize(), bits, rounding=rounding, per_channel=per_channel)
    assert torch.equal(once.dequantize(), again.dequantize())
    assert torch.equal(log_quantize(-w, bits, rounding=rounding, per_channel=per_channel).q, -once.q)
    assert bool((once.q[w == 0] == 0).all())
    assert set(once.q.abs().unique().tolist()) <= {0, *(2**e for e in range(exponent_count(bits)))}


@law
@given(weights, st.integers(-8, 8), modes)
def test_scaling_by_a_power_of_two_moves_only_the_exponent(values, power, rounding):
    w = torch.tensor(values, dtype=torch.float64).view(2, 3)
    a, b = log_quantize(w, 4, rounding=rounding), log_quantize(w * 2.0**power, 4, rounding=rounding)
    assert torch.equal(a.q, b.q)
    moved = b.exponent - a.exponent
    assert bool((moved[w.abs().amax(1) > 0] == power).all())


@law
@given(st.lists(st.floats(1e-4, 100), min_size=2, max_size=30), modes)
def test_monotone_in_magnitude(values, rounding):
    w = torch.tensor(sorted(values), dtype=torch.float64).view(1, -1)
    assert bool((log_quantize(w, 4, rounding=rounding).q.diff() >= 0).all())


@pytest.mark.parametrize(("rounding", "switch"), [("log", math.sqrt(2)), ("linear", 1.5)])
def test_thresholds_are_exact(rounding, switch):
    below, above = math.nextafter(switch, 0), switch
    w = torch.tensor([[64.0, 8 * below, 8 * above]], dtype=torch.float64)
    made = log_quantize(w, 4, rounding=rounding)
    assert made.dequantize().tolist() == [[64.0, 8.0, 16.0]]


@pytest.mark.parametrize(("rounding", "zero"), [("log", math.sqrt(0.5)), ("linear", 0.5)])
def test_too_small_is_zero(rounding, zero):
    w = torch.tensor([[4.0, math.nextafter(zero, 0), zero]], dtype=torch.float64)
    assert log_quantize(w, 3, rounding=rounding).q.tolist() == [[4, 0, 1]]


def test_bits_follow_the_formula():
    w = torch.tensor([[1.0, 0.5, 0.25, 2.0**-6, 2.0**-9]])
    assert log_quantize(w, 4).q.tolist() == [[64, 32, 16, 1, 0]]
    assert log_quantize(w, 4).exponent.tolist() == [-6]
    assert log_quantize(w, 2).q.tolist() == [[1, 0, 0, 0, 0]]


def test_per_layer_scale_is_the_largest_channel():
    w = torch.tensor([[1.0, 0.5], [0.125, 0.0625]])
    assert log_quantize(w, 3, per_channel=False).exponent.tolist() == [-2, -2]
    assert log_quantize(w, 3, per_channel=True).exponent.tolist() == [-2, -5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_refused(bad):
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        log_quantize(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize("bits", [1, 6, 3.0, True, "4"])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(QuantizationError, match="2, 3, 4 or 5"):
        log_quantize(torch.ones(1, 1), bits)


def test_unknown_rounding_is_refused():
    with pytest.raises(QuantizationError, match="'log' or 'linear'"):
        log_quantize(torch.ones(1, 1), 4, rounding="nearest")
