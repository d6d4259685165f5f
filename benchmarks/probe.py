"""What watching costs: CPU-time ratios of the probe to plain forward + backward, side by side with other tools.

    python benchmarks/probe.py                  # ResNet-20 width 16, batch 64, 1 x 28 x 28; and ResNet-56, batch 32
    python benchmarks/probe.py --rounds 30 --no-peers
    python benchmarks/probe.py --only resnet56  # without ResNet-20, its peers and the memory

Every contender runs in every round, one after the other, on one thread; a ratio divides a contender's CPU time by that
of the plain step. ``min`` is the ratio of the fastest rounds, ``median`` the median over rounds of the ratio within a
round, which a busy machine disturbs least. The C library's heap trimming is switched off for all contenders (the
script restarts itself with it): otherwise each pays or saves milliseconds of page faults depending on who ran before.
``--default-malloc`` leaves it on.

``deep`` is every quantity that one forward and backward pass can show. ``deep + nu`` adds the batch-noise ratio, which
compares a sample among different companions and so needs a second look: of half the batch where there is one, and
one batch more for every two where there are several (``two batches``, whose plain step is two steps).

Peak memory is the largest sum of living tensors during a step, as torch's own allocator counts it. The resident set of
the process shows the same within the scatter of heap fragmentation, about a tenth either way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_MALLOC = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
#: Promised ratios to plain forward + backward.
TARGETS = {"light": 1.12, "standard": 1.2, "deep": 1.3}
LEVELS = tuple(TARGETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-peers", action="store_true", help="only the probe and its floors")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only", choices=("resnet20", "resnet56"), help="one of the two networks")
    parser.add_argument("--default-malloc", action="store_true", help="leave the C library's heap trimming on")
    args = parser.parse_args()
    if (
        not args.default_malloc
        and os.environ.get("MALLOC_TRIM_THRESHOLD_") is None
        and platform.libc_ver()[0] == "glibc"
    ):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _MALLOC | {"OMP_NUM_THREADS": "1"})
    import torch

    torch.set_num_threads(1)
    print(f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, 1 thread")
    if args.only != "resnet56":
        small = contenders("resnet20:width=16", 64, (1, 28, 28), peers=not args.no_peers)
        compare("ResNet-20 width 16, batch 64, 1 x 28 x 28", small, args.rounds, TARGETS)
    if args.only != "resnet20":
        title, targets = "ResNet-56, batch 32, 3 x 32 x 32", {"deep": 1.4, "deep + nu": 1.4}
        rounds = max(3, args.rounds if args.only else args.rounds // 4)
        large = contenders("resnet56", 32, (3, 32, 32), peers=False)
        compare(title, {name: large[name] for name in ("plain", "deep", "deep + nu")}, rounds, targets)
        compare(f"{title}, two batches", contenders_in_pairs("resnet56", 32, (3, 32, 32)), max(3, rounds // 2), targets)
    if not args.no_memory and args.only != "resnet56":
        names = ("plain", *LEVELS, "deep + nu", "stored clones")
        peaks = {name: peak_bytes(small[name]) for name in names}
        print("\npeak of living tensors, ResNet-20, batch 64")
        for name, peak in peaks.items():
            target = "  target 1.05" if name in (*LEVELS, "deep + nu") else ""
            print(f"  {name:<18}{peak / 2**20:6.1f} MiB{peak / peaks['plain']:7.3f}{target}")


def contenders_in_pairs(net: str, batch: int, in_shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Two batches: as many plain steps, and one probe that averages over both."""
    import torch
    from torch.nn import functional

    from layerscope import nets
    from layerscope.probe import profile

    model = nets.build(net, norm="batch", in_shape=in_shape, classes=10, seed=0).train()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2 * batch, *in_shape, generator=generator), torch.randint(10, (2 * batch,), generator=generator)

    def plain() -> None:
        for part, labels in zip(x.split(batch), y.split(batch), strict=True):
            model.zero_grad()
            functional.cross_entropy(model(part), labels).backward()

    def probe(nu: bool) -> Callable[[], object]:
        return lambda: profile(model, (x, y), level="deep", batch_size=batch, batch_noise=nu)

    return {"plain": plain, "deep": probe(False), "deep + nu": probe(True)}


def contenders(net: str, batch: int, in_shape: tuple[int, ...], *, peers: bool) -> dict[str, Callable[[], object]]:
    """Name -> one step on the same network and batch."""
    import torch
    from torch.nn import functional

    from layerscope import nets
    from layerscope.probe import profile

    model = nets.build(net, norm="batch", in_shape=in_shape, classes=10, seed=0).train()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, *in_shape, generator=generator), torch.randint(10, (batch,), generator=generator)

    def plain() -> None:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()

    def watched(hook: Callable[..., None]) -> None:
        leaves = [m for m in model.modules() if not list(m.children())]
        handles = [m.register_forward_hook(hook) for m in leaves]
        plain()
        for handle in handles:
            handle.remove()

    def naive() -> None:
        rows: list[float] = []

        def read(t: torch.Tensor) -> None:
            rows.extend((t.std().item(), t.mean().item()))

        def hook(module: object, args: object, out: torch.Tensor) -> None:
            read(out.detach())
            out.register_hook(lambda g: read(g))

        watched(hook)

    def clones() -> None:
        kept: list[torch.Tensor] = []

        def hook(module: object, args: object, out: torch.Tensor) -> None:
            kept.append(out.detach().clone())
            out.register_hook(lambda g: kept.append(g.clone()))

        watched(hook)

    steps: dict[str, Callable[[], object]] = {"plain": plain, "empty hooks": lambda: watched(lambda *_: None)}
    for level in LEVELS:
        steps[level] = lambda level=level: profile(model, (x, y), level=level)
    steps["deep + nu"] = lambda: profile(model, (x, y), level="deep", batch_noise=True)
    steps["stored clones"] = clones
    steps["std() + mean()"] = naive
    return steps | (peer_steps(model, x, y) if peers else {})


def peer_steps(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Other tools on the same step, where they are installed and load."""

    def captum() -> Callable[[], object]:
        from captum.attr import LayerGradientXActivation

        leaves = [m for m in model.modules() if not list(m.children()) and type(m).__name__ != "Identity"]
        return lambda: LayerGradientXActivation(model, leaves).attribute(x, target=y)

    def torchlens() -> Callable[[], object]:
        import torchlens

        trace = torchlens.trace
        return lambda: trace(model, x)

    steps: dict[str, Callable[[], object]] = {}
    for name, load in {"captum": captum, "torchlens (fwd)": torchlens}.items():
        try:
            steps[name] = load()
        except Exception as error:  # a peer is optional, and so is whatever it needs
            print(f"{name} is left out: {error}")
    return steps


def compare(title: str, steps: dict[str, Callable[[], object]], rounds: int, targets: dict[str, float]) -> None:
    """Print the interleaved ratios of ``steps`` to ``plain``."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    slow = ("torchlens (fwd)", "captum")
    for turn in range(rounds + 1):
        for name, step in steps.items():
            if name in slow and turn > max(3, rounds // 5):
                continue
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peers warn about what they cannot do
                step()
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    base = seconds["plain"]
    print(f"\n{title}: plain step {min(base) * 1e3:.0f} ms CPU (min of {rounds})")
    print(f"  {'':<18}{'min':>6}{'median':>8}")
    for name, times in seconds.items():
        paired = statistics.median(t / b for t, b in zip(times, base, strict=False))
        target = f"  target {targets[name]}" if name in targets else ""
        print(f"  {name:<18}{min(times) / min(base[: len(times)]):6.2f}{paired:8.2f}{target}")


def peak_bytes(step: Callable[[], object]) -> int:
    """Largest sum of living tensors during one step, as torch's allocator counts them."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(itertools.accumulate(bytes_ for _, bytes_ in changes))


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
