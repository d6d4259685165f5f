"""The promised cost, with slack for a busy machine; ``benchmarks/probe.py`` measures it properly."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch.nn import functional

from layerscope import nets
from layerscope.probe import profile


@pytest.mark.slow
@pytest.mark.parametrize(("level", "limit"), [("light", 1.4), ("standard", 1.5)])
def test_ratio_to_a_plain_step(level: str, limit: float) -> None:
    model = nets.build("resnet20:width=16", norm="batch", in_shape=(1, 28, 28), classes=10, seed=0).train()
    x, y = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))

    def plain() -> None:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()

    def cpu_seconds(step: object) -> float:
        start = time.process_time()
        step()  # type: ignore[operator]  # one of the two functions here
        return time.process_time() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = (plain, lambda: profile(model, (x, y), level=level))  # type: ignore[arg-type]  # parametrized strings
        rounds = [[cpu_seconds(step) for step in steps] for _ in range(9)][1:]
    finally:
        torch.set_num_threads(threads)
    assert statistics.median(watched / base for base, watched in rounds) < limit
