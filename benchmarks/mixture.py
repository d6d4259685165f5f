"""Cost of mixture normalization against torch's batch norm, and against the obvious ways to write it.

    python benchmarks/mixture.py            # layer, CNN-5 and memory; about two minutes on one core
    python benchmarks/mixture.py --quick    # fewer repeats
    python benchmarks/mixture.py --gpu      # the same on a GPU: layers, CNN-5 at batch 256; about a minute

Ratios of CPU time on one thread, minimum and median over rounds. In every round all forms run once, in random order:
what ran before leaves the caches and the allocator in its own state. "in blocks" is the layer without its compiled
kernels, as it is where no C++ compiler is found. Targets: a layer's train step at most 3x batch norm's, evaluation at
most 8x, a CNN-5 train step at most 1.25x with one layer replaced and 1.6x with all, memory kept for backward beyond
batch norm's at most M (K + C) 4 bytes. On a GPU: a CNN-5 train step at most 2x.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from layerscope import norms
from layerscope.norms import mixture_native

SHAPES = [(64, 16, 28, 28), (64, 32, 14, 14), (64, 128, 8, 8)]


class LoopMixtureNorm(nn.Module):
    """The obvious form: one pass of autograd per component, posteriors from full differences."""

    def __init__(self, channels: int, k: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mean", torch.randn(k, channels, generator=generator))
        self.register_buffer("var", torch.ones(k, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Posteriors without gradient, then per component: weighted moments, normalized deviation, weighted sum."""
        shape = (1, -1, 1, 1)
        with torch.no_grad():
            parts = zip(self.mean, self.var, strict=True)
            logits = [-0.5 * ((x - m.view(shape)) ** 2 / v.view(shape)).sum(1, keepdim=True) for m, v in parts]
            tau = torch.softmax(torch.cat(logits, 1) / x.shape[1], 1)
        y = torch.zeros_like(x)
        for k in range(len(self.mean)):
            w = tau[:, k : k + 1]
            total = w.sum()
            mean = (w * x).sum((0, 2, 3), keepdim=True) / total
            var = (w * (x - mean) ** 2).sum((0, 2, 3), keepdim=True) / total
            share = total / w.numel()
            y = y + w / share.sqrt() * (x - mean) / torch.sqrt(var + 1e-5)
        return y * self.weight.view(shape) + self.bias.view(shape)


class InBlocks(norms.MixtureNorm):
    """The layer without its compiled kernels: blocks of torch operations."""

    def forward(self, x: Tensor) -> Tensor:
        """With the kernels turned off. The backward pass follows by itself."""
        os.environ["LAYERSCOPE_NATIVE"] = "0"
        try:
            return super().forward(x)
        finally:
            del os.environ["LAYERSCOPE_NATIVE"]


FORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": nn.BatchNorm2d,
    "mixture, K=3": lambda c: norms.MixtureNorm(c, 3),
    "mixture, K=3, T=1": lambda c: norms.MixtureNorm(c, 3, temperature=1),
    "mixture, K=8": lambda c: norms.MixtureNorm(c, 8),
    "mixture, K=3, in blocks": lambda c: InBlocks(c, 3),
    "mode norm, K=3": lambda c: norms.ModeNorm(c, 3),
    "loop over components": lambda c: LoopMixtureNorm(c, 3),
    "posteriors per channel": lambda c: norms.ChannelMixtureNorm(c, 3),
}


def cnn5(spec: Callable[[int], str]) -> nn.Sequential:
    """Four 5x5 convolutions (64, 128, 128, 256), each with norm and ReLU, and a linear layer."""
    layers: list[nn.Module] = []
    width = 1
    for i, channels in enumerate((64, 128, 128, 256)):
        layers += [nn.Conv2d(width, channels, 5, padding=2, bias=False), norms.build(spec(i), channels), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2, 1)] if i < 3 else []
        width = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Minimum and median CPU milliseconds of every job: all in every round, in random order."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order = random.Random(0)
    for turn in range(-3, rounds):  # the first ones warm up
        for name in order.sample(list(jobs), len(jobs)):
            start = time.process_time()
            jobs[name]()
            if turn >= 0:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def step(net: nn.Module, x: Tensor, upstream: Tensor | None = None) -> None:
    """One forward and backward pass."""
    y = net(x)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    x.grad = None
    for p in net.parameters():
        p.grad = None


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Memory that autograd keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = net(x)
    del kept
    return sum(seen.values())


def report(title: str, times: dict[str, tuple[float, float]], first: str) -> None:
    """Ratios to ``first``."""
    low, mid = times[first]
    print(f"\n{title}   ({first}: {low:.2f} ms at best, {mid:.2f} ms median)")
    for name, (a, b) in times.items():
        if name != first:
            print(f"  {name:<25} {a / low:6.2f}x best {b / mid:6.2f}x median")


def gpu_milliseconds(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Minimum and median milliseconds on the GPU's own clock, taken in turns; the host's launches count if they lag."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        for _ in range(4):
            job()
    torch.cuda.synchronize()
    for _ in range(repeats):
        for name, job in jobs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(5):
                job()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / 5)
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def graphed(job: Callable[[], object]) -> Callable[[], object]:
    """The same job as a CUDA graph: no time of the host in it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            job()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        job()
    return graph.replay


def gpu(repeats: int) -> None:
    """Layers in all three shapes and in CNN-5's own, and a whole CNN-5 step at batch 256: eager and as CUDA graphs."""
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    forms = {
        "batch norm": FORMS["batch norm"],
        "mixture, K=3": FORMS["mixture, K=3"],
        "mixture, K=8": FORMS["mixture, K=8"],
    }
    for shape in [*SHAPES, (256, 64, 28, 28), (256, 128, 14, 14), (256, 256, 4, 4)]:
        x, g = torch.randn(shape, device="cuda", requires_grad=True), torch.randn(shape, device="cuda")
        nets = {name: make(shape[1]).cuda() for name, make in forms.items()}
        jobs = {name: partial(step, net, x, g) for name, net in nets.items()}
        report(f"{shape} train step, eager", gpu_milliseconds(jobs, repeats), "batch norm")
        graphs = {name: graphed(job) for name, job in jobs.items()}
        report(f"{shape} train step, CUDA graph", gpu_milliseconds(graphs, repeats), "batch norm")
        still = torch.randn(shape, device="cuda")
        with torch.no_grad():
            jobs = {name: graphed(partial(net.eval(), still)) for name, net in nets.items()}
            report(f"{shape} evaluation, CUDA graph", gpu_milliseconds(jobs, repeats), "batch norm")
    arms = {
        "all batch norm": lambda i: "batch",
        "mixture in layer 2": lambda i: "mixture" if i == 1 else "batch",
        "mixture in all layers": lambda i: "mixture",
    }
    for dtype in (torch.float32, torch.bfloat16):
        for kernels in ("1", "0"):
            os.environ["LAYERSCOPE_TRITON"] = kernels
            title = f"CNN-5, batch 256 at 28x28, train step, {dtype}, {'Triton' if kernels == '1' else 'plain torch'}"
            x = torch.randn(256, 1, 28, 28, device="cuda")
            trained = {name: cnn5(spec).cuda() for name, spec in arms.items()}

            def mixed(net: nn.Module, x: Tensor = x, dtype: torch.dtype = dtype) -> None:
                with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
                    loss = net(x).float().square().sum()
                loss.backward()
                for p in net.parameters():
                    p.grad = None

            jobs = {name: partial(mixed, net) for name, net in trained.items()}
            report(f"{title}, eager", gpu_milliseconds(jobs, repeats), "all batch norm")
            if kernels == "1":
                graphs = {name: graphed(job) for name, job in jobs.items()}
                report(f"{title}, CUDA graph", gpu_milliseconds(graphs, repeats), "all batch norm")
    os.environ.pop("LAYERSCOPE_TRITON")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    quick = args.quick
    if args.gpu:
        gpu(5 if quick else 20)
        return
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"compiled kernels: {'yes' if mixture_native.kernels(torch.zeros(1, 1, 1), 3) else 'no'}")
    for shape in SHAPES:
        x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
        nets = {name: make(shape[1]) for name, make in FORMS.items()}
        jobs = {name: partial(step, net, x, g) for name, net in nets.items()}
        report(f"{shape} train step", interleaved(jobs, 15 if quick else 50), "batch norm")
        m, c = shape[0] * shape[2] * shape[3], shape[1]
        extra = saved_bytes(nets["mixture, K=3"], x) - saved_bytes(nets["batch norm"], x)
        print(f"  kept for backward beyond batch norm: {extra} bytes, target {4 * m * (3 + c)}")
        still = torch.randn(shape)
        with torch.no_grad():
            evaluated = {name: net.eval() for name, net in nets.items() if name != "loop over components"}
            jobs = {name: partial(net, still) for name, net in evaluated.items()}
            report(f"{shape} evaluation", interleaved(jobs, 25 if quick else 80), "batch norm")
    x = torch.randn(32, 1, 28, 28)
    arms = {
        "all batch norm": lambda i: "batch",
        "mixture in layer 2": lambda i: "mixture" if i == 1 else "batch",
        "mixture in all layers": lambda i: "mixture",
    }
    trained = {name: cnn5(spec) for name, spec in arms.items()}
    jobs = {name: partial(step, net, x) for name, net in trained.items()}
    report("CNN-5, batch 32 at 28x28, train step", interleaved(jobs, 5 if quick else 15), "all batch norm")


if __name__ == "__main__":
    main()
