from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.errors import BuildError
from layerscope.methods.focus.graph import trace
from layerscope.methods.focus.plan import make_plan, zero_fills
from layerscope.methods.focus.reference import masked_forward
from layerscope.methods.focus.runner import Runner
from layerscope.methods.focus.timing import interleaved
from methods.focus.focus_nets import make_mask


@pytest.mark.slow
def test_three_quarters_inactive_is_at_least_a_third_faster_than_the_own_full_run():
    if os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        pytest.skip("the machine is busy: times would mean nothing")
    try:
        backend = make_backend("avx512")
    except BuildError as error:
        pytest.skip(str(error))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        layers = [m for _ in range(5) for m in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
        net = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        x = torch.randn(1, 3, 112, 112)
        traced = trace(net, x)
        plan = make_plan(traced, traced.cut("1"))
        runner = Runner(plan, backend, zero_fills(plan))
        full = torch.ones(1, 56, 56, dtype=torch.bool)
        quarter = torch.zeros_like(full)
        quarter[:, 14:42, 14:42] = True
        for mask in (full, quarter, make_mask("blob", 1, 56, 56)):
            want = masked_forward(plan, zero_fills(plan), x, mask)
            torch.testing.assert_close(runner.tail(runner.stem(x), mask), want, atol=1e-5, rtol=1e-5)
        runs = {
            name: (lambda _, m=mask: runner.tail(runner.stem(x), m))
            for name, mask in (("full", full), ("quarter", quarter))
        }
        times = interleaved(runs, [x] * 20)
        assert min(times["full"]) / min(times["quarter"]) >= 1.3
    finally:
        torch.set_num_threads(before)
