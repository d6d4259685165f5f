"""Mixture Normalization in the paper's own setting, ordinary images, at several learning rates and component counts.

    python papers/mixture-normalization/grid.py --device cuda --part 0/4   # one of four processes on one GPU
    python papers/mixture-normalization/grid.py --small                    # what one CPU core does in an hour
    python papers/mixture-normalization/grid.py --table                    # the tables of the README

Fashion-MNIST, AdamW at a constant rate, the same initial weights and batches in every arm. At every mark the statistics
are recalibrated on eight training batches, test accuracy is taken, and all statistics are put back. Trials are rows of
results/grid*.jsonl, in order of importance; one that stands there is not run again, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import data, norms, surgery
from layerscope.norms import mixture_fused

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    name: str
    side: int
    """Side of the images."""
    width: float
    """Factor on all widths."""
    depth: int
    """Layers in a dense block."""
    train: int
    """Training images."""
    test: int
    """Test images."""
    batch: int
    updates: int
    marks: int
    """How often the test accuracy is taken, at equal distances."""


FULL = Scale("full", 28, 1.0, 12, 60000, 10000, 256, 1170, 20)
SMALL = Scale("small", 14, 0.25, 3, 20000, 2000, 64, 320, 16)


# networks: batch norm everywhere; what is replaced is chosen by name


def unit(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def cnn5(s: Scale) -> nn.Sequential:
    """Four 5x5 convolutions of 64, 128, 128 and 256 channels and a linear layer."""
    net, width = nn.Sequential(), 1
    for i, channels in enumerate((64, 128, 128, 256), 1):
        channels = int(channels * s.width)
        net.add_module(f"layer{i}", unit(width, channels, 5))
        if i < 4:
            net.add_module(f"pool{i}", nn.MaxPool2d(3, 2, 1))
        width = channels
    return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)])


class Module(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pooling, 1x1. All with norms."""

    def __init__(self, inputs: int, c: int) -> None:
        super().__init__()
        self.a = unit(inputs, c, 1)
        self.b = nn.Sequential(unit(inputs, c, 1), unit(c, c, 3))
        self.c = nn.Sequential(unit(inputs, c // 2, 1), unit(c // 2, c, 3), unit(c, c, 3))
        self.d = nn.Sequential(nn.AvgPool2d(3, 1, 1), unit(inputs, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, 4 c, H, W]."""
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)


def inception(s: Scale) -> nn.Sequential:
    """A stem of two 3x3 convolutions and four Inception modules."""
    c = int(32 * s.width)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(unit(1, c, 3), unit(c, 2 * c, 3), nn.MaxPool2d(3, 2, 1)))
    width = 2 * c
    for i, grown in enumerate((c, 3 * c // 2, 2 * c, 2 * c), 1):
        net.add_module(f"module{i}", Module(width, grown))
        width = 4 * grown
        if i in (2, 3):
            net.add_module(f"pool{i}", nn.MaxPool2d(3, 2, 1))
    return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)])


class Dense(nn.Module):
    """Norm, ReLU, 3x3 convolution; the input is kept beside the output."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C + growth, H, W]."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet(s: Scale) -> nn.Sequential:
    """DenseNet-40: three dense blocks of twelve layers, growth 12, two transitions."""
    growth = 12 if s.width == 1 else 6
    width = 16
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(1, width, 3, padding=1, bias=False))
    for i in (1, 2, 3):
        block = nn.Sequential(*(Dense(width + j * growth, growth) for j in range(s.depth)))
        net.add_module(f"block{i}", block)
        width += s.depth * growth
        out = [nn.BatchNorm2d(width), nn.ReLU()]
        if i < 3:
            out += [nn.Conv2d(width, width, 1, bias=False), nn.AvgPool2d(2)]
        net.add_module(f"transition{i}", nn.Sequential(*out))
    return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)])


NETS: dict[str, Callable[[Scale], nn.Sequential]] = {"cnn5": cnn5, "inception": inception, "densenet": densenet}
#: the few norms that are replaced, by name
FEW = {"cnn5": "layer2.*", "inception": "stem.*", "densenet": "transition*"}

#: arm -> norm put in (None: batch norm stays, with the gain sqrt(K)), and whether everywhere or in the few places
ARMS: dict[str, tuple[str | None, int, bool]] = {
    "BN": ("batch", 1, False),
    "BN, gain sqrt(3)": (None, 3, False),
    "MN K=3": ("mixture:k=3", 3, False),
    "BN, gain sqrt(3), all": (None, 3, True),
    "MN K=3, all": ("mixture:k=3", 3, True),
    "MN K=3, T=1": ("mixture:k=3,temperature=1", 3, False),
    "MN K=2": ("mixture:k=2", 2, False),
    "MN K=5": ("mixture:k=5", 5, False),
    "Mode Norm K=3": ("mode:k=3", 3, False),
}
MAIN = list(ARMS)[:3]


@dataclass(frozen=True)
class Trial:
    """One network to train."""

    scale: str
    net: str
    arm: str
    lr: float
    seed: int


def trials(scale: Scale) -> Iterator[Trial]:
    """All of them, the most important first."""

    def group(nets: list[str], arms: list[str], lrs: list[float], seeds: range) -> Iterator[Trial]:
        for seed in seeds:
            for lr in lrs:
                for net in nets:
                    for arm in arms:
                        yield Trial(scale.name, net, arm, lr, seed)

    everything = list(ARMS)
    if scale.name == "small":
        yield from group(["cnn5"], MAIN, [5e-3, 1e-3], range(3))
        yield from group(["inception", "densenet"], MAIN, [5e-3], range(3))
        yield from group(["cnn5"], ["MN K=2", "MN K=5"], [5e-3], range(3))
        yield from group(["inception", "densenet"], MAIN, [1e-3], range(3))
        yield from group(["cnn5"], everything[3:], [5e-3], range(3))
        yield from group(list(NETS), MAIN, [5e-3, 1e-3], range(3, 5))
        return
    yield from group(["cnn5"], MAIN, [1e-3], range(3))
    yield from group(["inception", "densenet"], MAIN, [1e-3], range(3))
    yield from group(["cnn5"], MAIN, [5e-3], range(3))
    yield from group(["cnn5"], everything[3:], [1e-3], range(3))
    yield from group(["inception", "densenet"], MAIN, [5e-3], range(3))
    yield from group(["cnn5"], everything[3:], [5e-3], range(3))
    yield from group(["cnn5"], MAIN, [2e-2], range(3))
    yield from group(["cnn5"], MAIN, [1e-3, 5e-3], range(3, 6))
    yield from group(["inception", "densenet"], everything[3:5], [1e-3], range(3))


def network(trial: Trial, scale: Scale) -> nn.Module:
    """Initial weights depend on the seed only; the arm's norms are put in by surgery."""
    torch.manual_seed(trial.seed)
    net: nn.Module = NETS[trial.net](scale)
    spec, k, everywhere = ARMS[trial.arm]
    if spec == "batch":
        return net
    only = None if everywhere else FEW[trial.net]
    plan = surgery.plan_swap(net, "mixture:k=3" if spec is None else spec, only=only)
    if spec is not None:
        return plan.apply().model
    for site in plan.swapped:
        nn.init.constant_(net.get_submodule(site.path).weight, math.sqrt(k))
    return net


class Step:
    """One training step. On a GPU, all but the first three are replays of a CUDA graph."""

    def __init__(self, net: nn.Module, lr: float, x: Tensor, y: Tensor, batch: int) -> None:
        self.net, self.x, self.y = net, x, y
        self.cuda = x.is_cuda
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=lr, weight_decay=1e-4, fused=self.cuda or None, capturable=self.cuda
        )
        self.index = torch.zeros(batch, dtype=torch.long, device=x.device)
        self.loss = torch.zeros((), device=x.device)  # summed since the last mark
        self.count, self.graph = 0, None
        self.stream = torch.cuda.Stream() if self.cuda else None

    def __call__(self, index: Tensor) -> None:
        """Do one step on these images."""
        self.index.copy_(index)
        self.count += 1
        if not self.cuda:
            self.run()
        elif self.graph is not None:
            self.graph.replay()
        elif self.count <= 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.run()
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.run()
            self.graph.replay()

    def run(self) -> None:
        """Forward, backward, update."""
        loss = F.cross_entropy(self.net(self.x[self.index]), self.y[self.index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Test accuracy in evaluation mode."""
    net.eval()
    hits = sum((net(part).argmax(1) == want).sum() for part, want in zip(x.split(500), y.split(500), strict=True))
    net.train()
    return hits / len(x)


def recalibrated_accuracy(net: nn.Module, batches: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """With the statistics counted anew; afterwards they are what they were."""
    kept = [b.clone() for b in net.buffers()]
    norms.recalibrate(net, batches)
    found = accuracy(net, x, y)
    with torch.no_grad():
        for buffer, old in zip(net.buffers(), kept, strict=True):
            buffer.copy_(old)
    return found


def run(trial: Trial, scale: Scale, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, object]:
    """Train one network."""
    start, cpu = time.monotonic(), time.process_time()
    x, y = train
    net = network(trial, scale).to(x.device).train()
    step = Step(net, trial.lr, x, y, scale.batch)
    generator = torch.Generator().manual_seed(100 + trial.seed)
    per_epoch = len(x) // scale.batch
    marks, losses, accuracies = [], [], []
    at = {round(scale.updates * (i + 1) / scale.marks) for i in range(scale.marks)}
    for done in range(scale.updates):
        if (i := done % per_epoch) == 0:
            order = torch.randperm(len(x), generator=generator).to(x.device)
            calibration = [x[order[j * scale.batch : (j + 1) * scale.batch]] for j in range(8)]
        step(order[i * scale.batch : (i + 1) * scale.batch])
        if done + 1 in at:
            losses.append(step.loss / (done + 1 - (marks[-1] if marks else 0)))
            step.loss.zero_()
            marks.append(done + 1)
            accuracies.append(recalibrated_accuracy(net, calibration, *test))
    return asdict(trial) | {
        "marks": marks,
        "loss": [round(v, 4) for v in torch.stack(losses).tolist()],
        "accuracy": [round(v, 4) for v in torch.stack(accuracies).tolist()],
        "accuracy_running": round(float(accuracy(net, *test)), 4),
        "images": scale.train,
        "tested": scale.test,
        "batch": scale.batch,
        "width": scale.width,
        "device": torch.cuda.get_device_name() if x.is_cuda else "CPU",
        "kernels": "triton" if mixture_fused.usable(x, 3) else "torch",
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def images(split: str, scale: Scale, device: str) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST at the scale's side, on the device."""
    full = data.load("fashion-mnist", split=split)
    x = full.x if scale.side == 28 else F.avg_pool2d(full.x, 28 // scale.side)
    n = scale.train if split == "train" else scale.test
    return x[:n].to(device), full.y[:n].to(device)


def stored(folder: Path) -> list[dict[str, object]]:
    """The trials that have been run."""
    lines = [line for path in sorted(folder.glob("grid*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th trial from the i-th on")
    parser.add_argument("--small", action="store_true", help="the grid for a CPU")
    parser.add_argument("--updates", type=int, help="other than the scale's, to try the code out: give --out as well")
    parser.add_argument("--limit", type=int, help="trials at most")
    parser.add_argument("--arm", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--net", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    args = parser.parse_args()
    if args.table:
        from grid_table import tables

        print(tables(stored(args.out)))
        return
    scale = SMALL if args.small else FULL
    if args.updates:
        scale = replace(scale, updates=args.updates)
    torch.set_num_threads(1)
    part, parts = (int(v) for v in args.part.split("/"))
    done = {tuple(r[k] for k in Trial.__dataclass_fields__) for r in stored(args.out)}
    train, test = images("train", scale, args.device), images("test", scale, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    mine = [t for t in dict.fromkeys(trials(scale)) if t.arm in args.arm and t.net in args.net][part::parts]
    for trial in [t for t in mine if tuple(asdict(t).values()) not in done][: args.limit]:
        row = run(trial, scale, train, test)
        with (args.out / f"grid-{scale.name}-{part}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        place = f"{mine.index(trial) + 1}/{len(mine)}"
        print(place, *asdict(trial).values(), max(row["accuracy"]), f"{row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
