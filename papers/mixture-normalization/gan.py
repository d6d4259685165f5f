"""Mixture Normalization in the generator of a small DCGAN on Fashion-MNIST, with the scale control.

    python papers/mixture-normalization/gan.py            # four generators, two seeds: results/gan.json
    python papers/mixture-normalization/gan.py --table    # the table of the README from results/gan.json

The distance is Frechet's, between Gaussians fitted to the 64 penultimate features of a classifier trained here (its
test accuracy is printed and stored): 3000 generated images against the 10,000 test images. Images are generated with
batch statistics, 100 at a time. Not comparable with an Inception FID.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import data, norms, training

HERE = Path(__file__).parent
ROWS = HERE / "results" / "gan.json"
LATENT, BATCH, MARKS = 64, 64, (150, 300, 450)

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


def generator(spec: str) -> nn.Sequential:
    """64 numbers to a 28x28 image in [-1, 1] through 48 and 24 channels, both normalized."""
    return nn.Sequential(
        nn.Linear(LATENT, 48 * 49, bias=False),
        nn.Unflatten(1, (48, 7, 7)),
        norms.build(spec, 48),
        nn.ReLU(),
        nn.ConvTranspose2d(48, 24, 4, 2, 1, bias=False),
        norms.build(spec, 24),
        nn.ReLU(),
        nn.ConvTranspose2d(24, 1, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator() -> nn.Sequential:
    """No normalization, so that the arms differ in the generator only."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(24, 48, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(48 * 49, 1),
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
def distance(net: nn.Sequential, judge: Classifier, real: Tensor) -> float:
    """Of 3000 images, drawn with batch statistics; the running ones are put back, so that training is not disturbed."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    noise = torch.Generator().manual_seed(7)
    fake = torch.cat([net(torch.randn(100, LATENT, generator=noise)) for _ in range(30)])
    net.load_state_dict(state)
    return frechet(judge.features(fake), real)


def trial(spec: str, seed: int, train: data.Dataset, judge: Classifier, real: Tensor) -> list[float]:
    """Distances after 150, 300 and 450 steps of the non-saturating loss."""
    torch.manual_seed(seed)
    critic = discriminator()
    torch.manual_seed(seed)
    net = generator(spec)
    for layer in (m for m in [*net, *critic] if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)):
        nn.init.normal_(layer.weight, 0, 0.02)
    optimizers = [torch.optim.Adam(m.parameters(), 2e-4, betas=(0.5, 0.999)) for m in (net, critic)]
    noise = torch.Generator().manual_seed(seed)
    found = []
    for step in range(1, MARKS[-1] + 1):
        real_x = train.x[torch.randint(len(train), (BATCH,), generator=noise)]
        fake = net(torch.randn(BATCH, LATENT, generator=noise))
        loss = F.softplus(-critic(real_x)).mean() + F.softplus(critic(fake.detach())).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        loss = F.softplus(-critic(fake)).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        if step in MARKS:
            found.append(round(distance(net, judge, real), 2))
    return found


def table(rows: list[dict[str, object]]) -> str:
    """Distances of every arm and seed at the three marks."""
    seeds = sorted({r["seed"] for r in rows})
    lines = ["| generator's norm | " + " | ".join(f"seed {s}" for s in seeds) + " |", "|---" * (len(seeds) + 1) + "|"]
    for arm in ARMS:
        cells = [
            " / ".join(f"{d:.0f}" for d in r["distance"])
            for s in seeds
            for r in rows
            if r["arm"] == arm and r["seed"] == s
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    args = parser.parse_args()
    rows: list[dict[str, object]] = json.loads(ROWS.read_text()) if ROWS.exists() else []
    if not args.table:
        torch.set_num_threads(1)
        train, test = data.load("fashion-mnist"), data.load("fashion-mnist", split="test")
        torch.manual_seed(0)
        judge = Classifier()
        training.fit(judge, train, steps=900, batch_size=128, optimizer="adamw", lr=2e-3, seed=0, progress=False)
        judge.requires_grad_(False)
        accuracy = training.evaluate(judge, test).accuracy
        real = judge.features(test.x)
        own = frechet(judge.features(train.x[:3000]), real)
        print(f"judge: test accuracy {accuracy:.3f}; 3000 training images against the test images: {own:.2f}")
        done = {(r["arm"], r["seed"]) for r in rows}
        for seed in range(args.seeds):
            for arm, spec in ARMS.items():
                if (arm, seed) not in done:
                    found = trial(spec, seed, train, judge, real)
                    rows.append({"arm": arm, "seed": seed, "distance": found, "judge": accuracy, "real": round(own, 2)})
                    ROWS.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
                    print(seed, arm, found, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
