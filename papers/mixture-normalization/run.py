"""Mixture Normalization against its controls, on data with one mode and with three.

    python papers/mixture-normalization/run.py            # every arm, both cases, three seeds: results/
    python papers/mixture-normalization/run.py --case laws --seeds 5
    python papers/mixture-normalization/run.py --table    # the tables of the README from results/

A trial that stands in results/ is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from intervals import interval
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import data, norms, training

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STEPS, BATCH, SMOOTH = 400, 128, 40

#: arm -> norm of each of the three layers
ARMS: dict[str, tuple[str, str, str]] = {
    "BN": ("batch",) * 3,
    "BN, gain sqrt(3)": (f"batch:gain={math.sqrt(3)}",) * 3,
    "GroupNorm, 4 groups": ("group:groups=4",) * 3,
    "Mode Norm, K=3": ("mode:k=3",) * 3,
    "MN layer 1": ("mixture:k=3", "batch", "batch"),
    "MN all layers": ("mixture:k=3",) * 3,
    "MN all layers, unit scale": ("mixture:k=3,scale=unit",) * 3,
    "MN layer 1, T=1": ("mixture:k=3,temperature=1", "batch", "batch"),
    "MN all layers, T=1": ("mixture:k=3,temperature=1",) * 3,
}
#: what a case does to the images, and its learning rate
CASES = {"laws": 5e-3, "plain": 5e-3}


def network(arm: str, seed: int) -> nn.Sequential:
    """Three 3x3 convolutions (16, 32, 64 channels), each with norm and ReLU; the same initial weights in every arm."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = 1
    for channels, spec, pool in zip((16, 32, 64), ARMS[arm], (True, True, False), strict=True):
        conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        recipe = norms.recipe(spec)
        layers += [conv, recipe.norm(channels), recipe.activation(channels)]
        layers += [nn.MaxPool2d(2)] if pool else []
        width = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def images(split: str, case: str) -> data.Dataset:
    """Fashion-MNIST at 14x14; in the case ``laws`` image i has contrast law i mod 3: x, 3 - 2.5 x or 0.15 x - 4."""
    full = data.load("fashion-mnist", split=split)
    x = F.avg_pool2d(full.x, 2)
    if case == "laws":
        law = torch.arange(len(x)) % 3
        slope, shift = torch.tensor([1.0, -2.5, 0.15])[law], torch.tensor([0.0, 3.0, -4.0])[law]
        x = x * slope.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)
    return data.Dataset(f"fashion-mnist 14x14 {case}", x, full.y, 10)


@torch.no_grad()
def accuracy(net: nn.Module, test: data.Dataset) -> float:
    """Test accuracy in evaluation mode."""
    net.eval()
    hits = [(net(x).argmax(1) == y).sum() for x, y in zip(test.x.split(1000), test.y.split(1000), strict=True)]
    return float(sum(hits)) / len(test)


def calibration_batches(train: data.Dataset, seed: int) -> list[Tensor]:
    """Twelve batches of 256 training images."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1000 + seed))
    return [train.x[order[i * 256 : (i + 1) * 256]] for i in range(12)]


def trial(arm: str, case: str, seed: int, train: data.Dataset, test: data.Dataset) -> dict[str, object]:
    """Train one network and measure it with running and with recalibrated statistics."""
    net = network(arm, seed)
    start = time.process_time()
    history = training.fit(
        net, train, steps=STEPS, batch_size=BATCH, optimizer="adamw", lr=CASES[case], seed=seed, progress=False
    )
    seconds = time.process_time() - start
    running = accuracy(net, test)
    norms.recalibrate(net, calibration_batches(train, seed)) if _has_statistics(net) else None
    return {
        "arm": arm,
        "case": case,
        "seed": seed,
        "accuracy": accuracy(net, test),
        "accuracy_running": running,
        "losses": [round(v, 4) for v in history.losses],
        "cpu_seconds": round(seconds, 2),
    }


def _has_statistics(net: nn.Module) -> bool:
    return any(hasattr(m, "reset_running_stats") for m in net.modules())


def smoothed(losses: list[float]) -> list[float]:
    """Mean training loss of the last 40 steps, from step 40 on."""
    return [statistics.fmean(losses[i - SMOOTH : i]) for i in range(SMOOTH, len(losses) + 1)]


def share_of_steps(row: dict[str, object], reference: dict[str, object]) -> float | None:
    """Steps until the smoothed loss reaches the reference's final one, as a share of all steps; None if never."""
    goal = smoothed(reference["losses"])[-1]
    for i, value in enumerate(smoothed(row["losses"])):
        if value <= goal:
            return (i + SMOOTH) / len(row["losses"])
    return None


def stored(case: str) -> list[dict[str, object]]:
    """The trials of a case that have been run."""
    path = RESULTS / f"{case}.json"
    return json.loads(path.read_text()) if path.exists() else []


def tables(rows: list[dict[str, object]]) -> str:
    """The README's tables: per case and arm, every seed."""
    found = {(r["case"], r["arm"], r["seed"]): r for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    lines = []
    for case in CASES:
        lines += [f"\n### {case}\n"]
        lines += ["| norm | test accuracy, recalibrated | difference to BN (95 %) | with running statistics |"]
        lines[-1] += " steps to BN's final loss | CPU |"
        lines += ["|---|---|---|---|---|---|"]
        for arm in ARMS:
            mine = [found[case, arm, s] for s in seeds if (case, arm, s) in found]
            if not mine:
                continue
            refs = [found[case, "BN", s] for s in seeds if (case, arm, s) in found]
            shares = [share_of_steps(r, b) for r, b in zip(mine, refs, strict=True)]
            cost = [float(r["cpu_seconds"]) / float(b["cpu_seconds"]) for r, b in zip(mine, refs, strict=True)]
            cells = [
                " / ".join(f"{100 * r['accuracy']:.1f}" for r in mine),
                "" if arm == "BN" else _difference(mine, refs),
                " / ".join(f"{100 * r['accuracy_running']:.1f}" for r in mine),
                " / ".join("never" if s is None else f"{s:.2f}" for s in shares),
                f"{statistics.median(cost):.2f}x",
            ]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(mine: list[dict[str, object]], refs: list[dict[str, object]]) -> str:
    """Mean difference in points at the same seed, and its 95 % interval."""
    gains = [100 * (r["accuracy"] - b["accuracy"]) for r, b in zip(mine, refs, strict=True)]
    if len(gains) < 2:
        return f"{gains[0]:+.1f}"
    low, high = interval(gains)
    return f"{statistics.fmean(gains):+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--arm", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        for case in args.case:
            train, test = images("train", case), images("test", case)
            rows = stored(case)
            done = {(r["case"], r["arm"], r["seed"]) for r in rows}
            for seed in range(args.seeds):
                for arm in args.arm:
                    if (case, arm, seed) in done:
                        continue
                    row = trial(arm, case, seed, train, test)
                    rows.append(row)
                    RESULTS.mkdir(exist_ok=True)
                    text = "[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n"
                    (RESULTS / f"{case}.json").write_text(text)
                    print(case, seed, arm, f"{row['accuracy']:.3f} {row['accuracy_running']:.3f}", flush=True)
    print(tables([row for case in CASES for row in stored(case)]))


if __name__ == "__main__":
    main()
