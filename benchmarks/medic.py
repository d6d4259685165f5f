"""What a step of cloning costs, against a plain training step plus one forward and backward pass of the teacher.

    python benchmarks/medic.py

One thread, CPU time, contestants in turn on the same batch; minimum and median over the repeats, as ratios to the
yardstick. Setting up the hooks, done once a run in use, is part of every step here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

import torch
from torch.nn import functional as F

from layerscope import nets
from layerscope.methods.medic import fresh_like
from layerscope.methods.medic.step import CloneStep, Teacher
from layerscope.methods.medic.taps import suggest_taps, tap_statistics, tapped


def timed(contestants: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="resnet:blocks=1,width=16")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--taps", default="conv+norm", choices=["late", "conv+norm"])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = (1, options.size, options.size)
    teacher = nets.build(options.net, "batch", in_shape=shape, classes=10, seed=0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, *shape, generator=generator), torch.randint(10, (64,), generator=generator)
    taps = suggest_taps(teacher, options.taps, x[:2])
    statistics = tap_statistics(teacher, x, taps)

    def plain() -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(x), y).backward()
        optimizer.step()
        own = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(teacher(own), y), own)

    def cloning(kind: str) -> Callable[[], None]:
        def run() -> None:
            with ExitStack() as stack:
                theirs, ours = (stack.enter_context(tapped(n, taps)) for n in (teacher, student))
                lesson = Teacher(teacher, taps, theirs, statistics, kind, per_sample=True, sharpness=5.0)
                lesson.first = described
                optimizer.zero_grad()
                CloneStep(lesson, ours, 1.0)(student, (x, y))[0].backward()
                optimizer.step()

        return run

    student = fresh_like(teacher, 0).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    described: dict[str, tuple[int, float | None, float | None, float]] = {}
    contestants = {"step + teacher": plain, "signed": cloning("signed"), "activation": cloning("activation")}
    for run in contestants.values():
        run()
    times = timed(contestants, options.repeats)
    base = times["step + teacher"]
    print(f"{options.net}, {len(taps)} taps, batch 64 of {shape}, torch {torch.__version__}, one thread")
    for name, found in times.items():
        print(f"{name:<16} min {min(found) / min(base):.2f}   median {median(found) / median(base):.2f}")


if __name__ == "__main__":
    main()
