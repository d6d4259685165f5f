"""Paired timing: every contestant runs on the same image in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from layerscope.methods.focus.cost import clock


def interleaved(runs: Mapping[str, Callable[[Tensor], Any]], images: Sequence[Tensor]) -> dict[str, list[float]]:
    """Seconds of each contestant on each image, in the same order for all; two warm-up rounds are not counted."""
    now = clock()
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for x in images[:2]:
            for run in runs.values():
                run(x)
        for x in images:
            for name, run in runs.items():
                start = now()
                run(x)
                times[name].append(now() - start)
    return times


def speedup(slow: Sequence[float], fast: Sequence[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Median of the paired ratios slow / fast, and the lower end of its two-sided 95 % bootstrap interval."""
    ratios = torch.tensor([a / b for a, b in zip(slow, fast, strict=True)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(ratios), (draws, len(ratios)), generator=generator)
    return median(ratios.tolist()), float(ratios[picks].median(1).values.quantile(0.025))
