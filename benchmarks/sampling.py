"""What a sampling network costs beside the same network with BatchNorm, and beside the explicit noise model.

    python benchmarks/sampling.py [--repeats 9]

Ratios of CPU time, one thread, the contestants interleaved; minimum and median over the repeats. A step is forward,
cross-entropy and backward, and zeroing the gradients, without the optimizer. Last, what the probe costs on networks
without randomness, with dropout (drawn in training only) and with noise that is always on, and how many forward passes
it takes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from layerscope.methods.sampling import Binarize, SamplingConv2d, SamplingLinear, predict, using_mode
from layerscope.probe import profile

warnings.simplefilter("ignore")


def mlp(sampling: bool) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [784, 300, 300]
    layers: list[nn.Module] = [nn.Flatten(), Binarize()]
    for i, o in itertools.pairwise(sizes):
        layers += [SamplingLinear(i, o)] if sampling else [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(300, 10))


def cnn(sampling: bool) -> nn.Sequential:
    torch.manual_seed(0)

    def conv(i: int, o: int) -> list[nn.Module]:
        return [SamplingConv2d(i, o, 5)] if sampling else [nn.Conv2d(i, o, 5), nn.BatchNorm2d(o), nn.ReLU()]

    dense = [SamplingLinear(1024, 512)] if sampling else [nn.Linear(1024, 512), nn.BatchNorm1d(512), nn.ReLU()]
    parts = [Binarize(), *conv(1, 32), nn.MaxPool2d(2), *conv(32, 64), nn.MaxPool2d(2), nn.Flatten(), *dense]
    return nn.Sequential(*parts, nn.Linear(512, 10))


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    return run


def measure(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant, interleaved, after one warm-up each."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def show(title: str, seconds: dict[str, list[float]], base: str) -> None:
    low, mid = min(seconds[base]), statistics.median(seconds[base])
    print(f"\n{title} (1.00 = {base}, {low * 1e3:.1f} ms)")
    for name, values in seconds.items():
        print(f"  {name:<34} min {min(values) / low:7.2f}x   median {statistics.median(values) / mid:7.2f}x")


def connection_step(layer: SamplingLinear, z: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad(set_to_none=True)
        with using_mode(layer, "connection"):
            layer(z).sum().backward()

    return run


class Counted(nn.Sequential):
    """A network that counts its forward passes."""

    passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        self.passes += 1
        return super().forward(x)


def probe_cost(x: torch.Tensor, y: torch.Tensor, repeats: int) -> None:
    """CPU time of the probe / of the forward and backward pass of the same network."""
    dropping = cnn(False)
    dropping.insert(len(dropping) - 1, nn.Dropout(0.5))
    nets = {"no randomness": cnn(False), "dropout": dropping, "sampling, noise always on": cnn(True)}
    print("\nProbe at the standard level, MNIST CNN, batch 100 (1.00 = forward + backward of the same network)")
    for name, plain in nets.items():
        net = Counted(*plain)
        profile(net, (x, y), seed=0)
        passes = net.passes
        seconds = measure({"step": step(net, x, y), "probe": lambda net=net: profile(net, (x, y), seed=0)}, repeats)
        ratio = min(seconds["probe"]) / min(seconds["step"])
        median = statistics.median(seconds["probe"]) / statistics.median(seconds["step"])
        print(f"  {name:<34} min {ratio:7.2f}x   median {median:7.2f}x   forward passes {passes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 1, 28, 28, generator=g), torch.randint(10, (100,), generator=g)
    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")

    for name, make in (("MLP 784-300-300-10, batch 100, one step", mlp), ("MNIST CNN, batch 100, one step", cnn)):
        nets = {"BatchNorm + ReLU": make(False), "sampling, marginal": make(True)}
        signs = make(True)
        for module in signs.modules():
            if isinstance(module, SamplingLinear | SamplingConv2d):
                module.mode = "sign"
        nets["sampling, sign (no noise)"] = signs
        show(name, measure({k: step(net, x, y) for k, net in nets.items()}, repeats), "BatchNorm + ReLU")

    layer, z = SamplingLinear(784, 300), torch.where(torch.randn(20, 784, generator=g) > 0, 1.0, -1.0)

    def marginal() -> None:
        layer.zero_grad(set_to_none=True)
        layer(z).sum().backward()

    show(
        "Layer 784 -> 300, batch 20, one step",
        measure({"marginal": marginal, "connection": connection_step(layer, z)}, repeats),
        "marginal",
    )

    probe_cost(x, y, repeats)

    net = mlp(True).eval()
    show(
        "100-sample prediction, MLP, batch 100",
        measure(
            {
                "first layer once": lambda: predict(net, x, samples=100, share_first=True, seed=0),
                "naive loop": lambda: predict(net, x, samples=100, share_first=False, seed=0),
            },
            max(3, repeats // 3),
        ),
        "naive loop",
    )


if __name__ == "__main__":
    main()
