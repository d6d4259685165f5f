"""Mixture Normalization in the generator of a small DCGAN on Fashion-MNIST, with the scale control.

    python papers/mixture-normalization/gan.py --device cuda    # four generators, five seeds: results/gan-full.jsonl
    python papers/mixture-normalization/gan.py --small          # what a CPU can do: results/gan-small.jsonl
    python papers/mixture-normalization/gan.py --table          # the tables of the README

The distance is Frechet's, between Gaussians fitted to the 64 penultimate features of a classifier trained here (its
test accuracy is printed and stored): generated images against the 10,000 test images. Images are generated with
batch statistics, 100 at a time. Not comparable with an Inception FID.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from intervals import interval
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import data, norms, training

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    name: str
    latent: int
    channels: tuple[int, int]
    batch: int
    marks: tuple[int, ...]
    """Steps after which the distance is taken."""
    samples: int
    """Images generated for a distance."""


SMALL = Scale("small", 64, (48, 24), 64, (150, 300, 450), 3000)
FULL = Scale("full", 100, (128, 64), 128, (250, 500, 1000, 2000, 4000, 8000), 10000)

ARMS = {
    "BN": "batch",
    "BN, gain sqrt(3)": f"batch:gain={math.sqrt(3)}",
    "MN, T=1": "mixture:k=3,temperature=1",
    "MN": "mixture:k=3",
}


class Classifier(nn.Module):
    """Three convolutions and two linear layers; :meth:`features` gives the 64 numbers before the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 16, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """[N, 64]."""
        return torch.cat([self.body(part) for part in x.split(500)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, 10]."""
        return self.head(self.body(x))


def generator(spec: str, scale: Scale) -> nn.Sequential:
    """Noise to a 28x28 image in [-1, 1] through two layers of channels, both normalized."""
    wide, narrow = scale.channels
    return nn.Sequential(
        nn.Linear(scale.latent, wide * 49, bias=False),
        nn.Unflatten(1, (wide, 7, 7)),
        norms.build(spec, wide),
        nn.ReLU(),
        nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False),
        norms.build(spec, narrow),
        nn.ReLU(),
        nn.ConvTranspose2d(narrow, 1, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator(scale: Scale) -> nn.Sequential:
    """No normalization, so that the arms differ in the generator only."""
    wide, narrow = scale.channels
    return nn.Sequential(
        nn.Conv2d(1, narrow, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, wide, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(wide * 49, 1),
    )


def frechet(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features, in float64."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.t()), torch.cov(b.t())
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.t()
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


@torch.no_grad()
def distance(net: nn.Sequential, judge: Classifier, real: Tensor, scale: Scale) -> float:
    """Of the scale's images, drawn with batch statistics; the running ones are put back: training is not disturbed."""
    kept = [b.clone() for b in net.buffers()]
    noise = torch.Generator().manual_seed(7)
    draws = (torch.randn(100, scale.latent, generator=noise).to(real.device) for _ in range(scale.samples // 100))
    fake = torch.cat([net(z) for z in draws])
    for buffer, old in zip(net.buffers(), kept, strict=True):
        buffer.copy_(old)
    return frechet(judge.features(fake), real)


class Step:
    """One step of the non-saturating loss. On a GPU, all but the first three are replays of a CUDA graph."""

    def __init__(self, net: nn.Module, critic: nn.Module, x: Tensor, scale: Scale, seed: int) -> None:
        self.net, self.critic, self.x, self.scale = net, critic, x, scale
        self.cuda = x.is_cuda
        more = {"capturable": self.cuda, "fused": self.cuda or None}
        self.optimizers = [torch.optim.Adam(m.parameters(), 2e-4, betas=(0.5, 0.999), **more) for m in (net, critic)]
        # a graph draws from the device's own generator only
        self.noise = None if self.cuda else torch.Generator().manual_seed(seed)
        self.count, self.graph = 0, None
        self.stream = torch.cuda.Stream() if self.cuda else None

    def __call__(self) -> None:
        """Do one step."""
        self.count += 1
        if not self.cuda:
            self.run()
        elif self.count <= 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.run()
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.run()
            self.graph.replay()

    def run(self) -> None:
        """The critic first, then the generator."""
        n, device = self.scale.batch, self.x.device
        real = self.x[torch.randint(len(self.x), (n,), generator=self.noise, device=device)]
        fake = self.net(torch.randn(n, self.scale.latent, generator=self.noise, device=device))
        loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        self.update(self.optimizers[1], loss)
        self.update(self.optimizers[0], F.softplus(-self.critic(fake)).mean())

    def update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Gradients of this loss, one update."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def trial(spec: str, seed: int, x: Tensor, judge: Classifier, real: Tensor, scale: Scale) -> list[float]:
    """Distances at the scale's marks."""
    torch.manual_seed(seed)
    critic = discriminator(scale)
    torch.manual_seed(seed)
    net = generator(spec, scale)
    for layer in (m for m in [*net, *critic] if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)):
        nn.init.normal_(layer.weight, 0, 0.02)
    net, critic = net.to(x.device), critic.to(x.device)
    step = Step(net, critic, x, scale, seed)
    found = []
    for done in range(1, scale.marks[-1] + 1):
        step()
        if done in scale.marks:
            found.append(round(distance(net, judge, real, scale), 2))
    return found


def trained_judge(train: data.Dataset, device: str) -> Classifier:
    """A classifier of the training images; it never changes again."""
    torch.manual_seed(0)
    judge = Classifier().to(device)
    training.fit(judge, train, steps=900, batch_size=128, optimizer="adamw", lr=2e-3, seed=0, progress=False)
    return judge.eval().requires_grad_(False)


def table(rows: list[dict[str, object]]) -> str:
    """Distances of every arm at every mark: mean over the seeds, and the 95 % interval of the difference to BN."""
    lines = []
    for scale in (FULL, SMALL):
        mine = [r for r in rows if r["scale"] == scale.name]
        if not mine:
            continue
        lines += [f"\n{scale.name}: judge's accuracy {mine[0]['judge']}, real images {mine[0]['real']}\n"]
        lines += ["| generator's norm | seeds | " + " | ".join(str(m) for m in scale.marks) + " |"]
        lines += ["|---" * (2 + len(scale.marks)) + "|"]
        found = {(r["arm"], r["seed"]): r["distance"] for r in mine}
        for arm in ARMS:
            seeds = [s for a, s in found if a == arm]
            if not seeds:
                continue
            cells = []
            for i in range(len(scale.marks)):
                here = [found[arm, s][i] for s in seeds]
                cell = f"{statistics.fmean(here):.1f}"
                paired = [found[arm, s][i] - found["BN", s][i] for s in seeds if ("BN", s) in found]
                if arm != "BN" and len(paired) > 1:
                    low, high = interval(paired)
                    cell += f" ({low:+.1f} to {high:+.1f})"
                cells.append(cell)
            lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="smaller nets and fewer steps, for a CPU")
    parser.add_argument("--steps", type=int, help="fewer steps, to try the code out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    args = parser.parse_args()
    scale = SMALL if args.small else FULL
    if args.steps:
        scale = replace(scale, marks=(args.steps,), samples=500)
    path = args.out / f"gan-{scale.name}.jsonl"
    if not args.table:
        torch.set_num_threads(1)
        train, test = data.load("fashion-mnist"), data.load("fashion-mnist", split="test")
        judge = trained_judge(train, args.device)
        x = train.x.to(args.device)
        real = judge.features(test.x.to(args.device))
        accuracy = round(float((judge.head(real).argmax(1).cpu() == test.y).double().mean()), 4)
        own = round(frechet(judge.features(x[: scale.samples]), real), 2)
        print(f"judge: test accuracy {accuracy}; training images against the test images: {own}", flush=True)
        done = {(r["arm"], r["seed"]) for r in stored(path)}
        args.out.mkdir(parents=True, exist_ok=True)
        for seed in range(args.seeds):
            for arm, spec in ARMS.items():
                if (arm, seed) not in done:
                    start = time.monotonic()
                    row = {"scale": scale.name, "arm": arm, "seed": seed}
                    row["distance"] = trial(spec, seed, x, judge, real, scale)
                    row |= {"judge": accuracy, "real": own, "seconds": round(time.monotonic() - start, 1)}
                    row["device"] = torch.cuda.get_device_name() if x.is_cuda else "CPU"
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(*row.values(), flush=True)
    if not args.steps:
        print(table([row for each in sorted(args.out.glob("gan-*.jsonl")) for row in stored(each)]))


def stored(path: Path) -> list[dict[str, object]]:
    """The trials that have been run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
