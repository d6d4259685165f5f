"""Encrypted room: gates of the four accumulators, speed of the bit-sliced simulator, time of a cost report.

    python benchmarks/encrypted.py

CPU time of one thread; minimum and median of several runs.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from layerscope.methods import encrypted as she
from layerscope.methods.encrypted.circuits.accumulators import ACCUMULATORS
from layerscope.methods.encrypted.circuits.neuron import Tap, neuron
from layerscope.methods.encrypted.circuits.simulate import evaluate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def taps(fan_in: int, seed: int) -> list[Tap]:
    """Random signs, five-bit inputs, exponents 0..3 with probabilities .4, .3, .2, .1."""
    rng = random.Random(seed)
    draw = [0.4, 0.3, 0.2, 0.1]
    return [Tap(rng.choice([1, -1]) * 2 ** rng.choices(range(4), draw)[0], 0, 31) for _ in range(fan_in)]


def accumulators(seeds: int = 5) -> None:
    print(f"gates (AND-depth), mean of {seeds} neurons: 5-bit inputs, exponents 0..3, random signs")
    print(f"{'fan-in':>7}" + "".join(f"{k:>16}" for k in ACCUMULATORS) + f"{'csa/mixed':>11}{'range/mixed':>13}")
    for fan_in in (9, 25, 144, 576):
        built = {k: [neuron(taps(fan_in, s), 0, k) for s in range(seeds)] for k in ACCUMULATORS}
        gates = {k: statistics.mean(c.gates for c in v) for k, v in built.items()}
        depth = {k: max(c.and_depth for c in v) for k, v in built.items()}
        cells = "".join(f"{gates[k]:>11.0f} ({depth[k]:>2})" for k in ACCUMULATORS)
        print(f"{fan_in:>7}{cells}{gates['csa'] / gates['mixed']:>11.3f}{gates['range'] / gates['mixed']:>13.3f}")


def simulator(runs: int = 7) -> None:
    print("\nbit-sliced simulator, csa neuron of fan-in 144")
    circuit = neuron(taps(144, 0), 0, "csa")
    rng = np.random.default_rng(0)
    for samples in (64, 1024, 16384, 262144):
        words = rng.integers(0, 2**63, (circuit.inputs, samples // 64), dtype=np.int64).view(np.uint64)
        evaluate(circuit, words)
        spent = []
        for _ in range(runs):
            start = time.process_time()
            evaluate(circuit, words)
            spent.append(time.process_time() - start)
        best, middle = min(spent), statistics.median(spent)
        rate = circuit.gates * samples / best
        print(f"  {samples:>7} samples: {rate:.2e} gate-samples/s (median {circuit.gates * samples / middle:.2e})")


def report(runs: int = 3) -> None:
    from methods.encrypted.resnet18 import resnet18

    net = resnet18().eval()
    spent = []
    for _ in range(runs):
        start = time.process_time()
        made = she.cost(net, (3, 32, 32))
        spent.append(time.process_time() - start)
    print(f"\ncost report, ResNet-18 for CIFAR-10: {min(spent):.1f} CPU s (median {statistics.median(spent):.1f})")
    gates = {k: f"{made.gates(k):.3g}" for k in made.accumulators}
    print(f"  gates {gates}, {made.bootstraps} bootstraps, {made.adds} adds")


if __name__ == "__main__":
    torch.set_num_threads(1)
    accumulators()
    simulator()
    report()
