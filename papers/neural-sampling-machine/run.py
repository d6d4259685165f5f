"""Train and measure every network of the paper's comparison; finished trials are kept, so that a stopped run goes on.

python papers/neural-sampling-machine/run.py mlp --data fashion-mnist --epochs 1 --seeds 3
python papers/neural-sampling-machine/run.py cnn --data fashion-mnist --epochs 2 --seeds 3
python papers/neural-sampling-machine/run.py percentiles
python papers/neural-sampling-machine/run.py tables
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from models import CONV, HIDDEN, cnn, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import data
from layerscope.methods.sampling import SamplingLayer, auroc, fixed_point, initialize, predict, reliability
from layerscope.methods.sampling.uncertainty import predictive_entropy
from layerscope.training import fit

RESULTS = Path(__file__).parent / "results"
SAMPLES = 10
TEST = 2000  # test images; the first ones
LR, TARGET = 1e-3, 0.7
GAIN = 0.7  # standard deviation of the log of the random gains


def probabilities(model: nn.Module, x: Tensor, samples: int = SAMPLES) -> Tensor:
    """Softmax [N, K]: averaged over passes where the network is stochastic."""
    model.eval()
    if is_sampling(model) and any(
        m.mode not in ("sign", "mean") for m in model.modules() if isinstance(m, SamplingLayer)
    ):
        return predict(model, x, samples, chunk=5, batch_size=250, seed=0).probs
    passes = samples if any(type(m).__name__ == "NoisyReLU" for m in model.modules()) else 1
    torch.manual_seed(0)
    with torch.no_grad():
        parts = [torch.stack([model(p) for _ in range(passes)]).double().softmax(-1).mean(0) for p in x.split(500)]
    return torch.cat(parts)


def is_sampling(model: nn.Module) -> bool:
    return any(isinstance(m, SamplingLayer) for m in model.modules())


def accuracy(probs: Tensor, y: Tensor) -> float:
    return float((probs.argmax(-1) == y).double().mean())


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Images rotated about their centre, with the background's -1 outside."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


def random_gains(model: nn.Module, seed: int) -> None:
    """Multiply the weights into every hidden unit by its own log-normal gain, in place."""
    g = torch.Generator().manual_seed(seed)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | SamplingLayer)]
    with torch.no_grad():
        for layer in layers[:-1]:
            gain = torch.exp(GAIN * torch.randn(len(layer.weight), generator=g))
            shape = (-1, *[1] * (layer.weight.ndim - 1))
            if hasattr(layer, "parametrizations"):  # weight norm: the gain of a synapse acts behind the norm
                layer.parametrizations.weight.original0 *= gain.view(shape)
            else:
                layer.weight *= gain.view(shape)


def trial(family: str, kind: str, name: str, epochs: int, seed: int, lr: float, target: float) -> dict:
    train, test = data.load(name), data.load(name, split="test")
    torch.manual_seed(seed)
    model = mlp(kind, train.x[0].numel()) if family == "mlp" else cnn(kind)
    if is_sampling(model):
        initialize(model, train.x[:500], target, seed)
    start = time.process_time()
    history = fit(
        model, train, epochs=epochs, batch_size=100, optimizer="adamw", lr=lr, schedule="cosine", seed=seed,
        progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    x, y = test.x[:TEST], test.y[:TEST]
    probs = probabilities(model, x)
    few, entropy = x[:1000], predictive_entropy(probs[:1000])
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(0))
    permuted = few.flatten(1)[:, order].view_as(few)
    row = {
        "family": family, "kind": kind, "data": name, "epochs": epochs, "seed": seed, "lr": lr, "target": target,
        "accuracy": accuracy(probs, y), "accuracy_one_pass": accuracy(probabilities(model, x, 1), y),
        "ece": reliability(probs, y).ece, "diverged": history.diverged, "cpu_seconds": round(seconds, 1),
        "auroc_rotated": auroc(entropy, predictive_entropy(probabilities(model, rotate(few, 90)))),
        "auroc_permuted": auroc(entropy, predictive_entropy(probabilities(model, permuted))),
        "entropy_by_angle": [
            round(float(predictive_entropy(probabilities(model, rotate(few[:500], a))).mean()), 4)
            for a in range(0, 181, 30)
        ],
    }  # fmt: skip
    if is_sampling(model):
        row["bits"] = {}
        for bits in range(2, 9):
            with fixed_point(model, bits):
                row["bits"][str(bits)] = accuracy(probabilities(model, few, 10), y[:1000])
    random_gains(model, seed)
    row["accuracy_random_gain"] = accuracy(probabilities(model, x), y)
    return row


def compare(family: str, name: str, epochs: int, seeds: int, kinds: list[str], lr: float, target: float) -> None:
    for seed in range(seeds):
        for kind in kinds or (HIDDEN if family == "mlp" else CONV):
            tried = "" if (lr, target) == (LR, TARGET) else f"-lr{lr:g}-target{target:g}"
            file = RESULTS / f"{family}-{name}-{kind.replace(', ', '_').replace(' ', '-')}{tried}-{epochs}-{seed}.json"
            if not file.exists():
                row = trial(family, kind, name, epochs, seed, lr, target)
                file.write_text(json.dumps(row, indent=1) + "\n")
                print(f"{family} {name} seed {seed} {kind}: {row['accuracy']:.4f} ece {row['ece']:.3f}", flush=True)


def percentiles(steps: int = 300) -> None:
    """15th, 50th and 85th percentile of the pre-activations into the last hidden layer while training."""
    out = {}
    for kind in ("nsm", "noisy relu", "sign, straight-through", "relu, batch norm"):
        for lr in (1e-3, 1e-2):
            torch.manual_seed(0)
            model, rows = mlp(kind, 784), []
            layers = [m for m in model.modules() if isinstance(m, nn.Linear | SamplingLayer)]
            last = layers[-2]

            def watch(module: nn.Module, args: tuple, output: Tensor, rows: list = rows) -> None:
                p = module.pre_activation(args[0]) if isinstance(module, SamplingLayer) else output
                quantiles = torch.quantile(p.detach().flatten()[:20000], torch.tensor([0.15, 0.5, 0.85]))
                rows.append([round(float(v), 4) for v in quantiles])

            # a batch norm works on the output of its linear layer: the pre-activation is behind it
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
            (norms[-1] if norms else last).register_forward_hook(watch)
            fit(model, "fashion-mnist", steps=steps, batch_size=100, optimizer="adamw", lr=lr, progress=False)
            spread = [r[2] - r[0] for r in rows]
            drift = max(abs(r[1] - rows[0][1]) for r in rows)
            out[f"{kind}, lr {lr:g}"] = {
                "percentiles": rows[:: max(1, steps // 60)],
                "spread_last_over_first": round(statistics.mean(spread[-10:]) / statistics.mean(spread[:10]), 2),
                "median_drift": round(drift, 3),
            }
            print(kind, lr, out[f"{kind}, lr {lr:g}"]["spread_last_over_first"], round(drift, 3), flush=True)
    (RESULTS / "percentiles.json").write_text(json.dumps(out) + "\n")


def tables() -> str:
    """Every finished trial as Markdown tables: mean over seeds, and half the range."""
    every = [json.loads(f.read_text()) for f in sorted(RESULTS.glob("*.json")) if f.name != "percentiles.json"]
    rows = [r for r in every if (r.get("lr", LR), r.get("target", TARGET)) == (LR, TARGET)]
    lines: list[str] = []
    for key in sorted({(r["family"], r["data"], r["epochs"]) for r in rows}):
        family, name, epochs = key
        lines += [f"### {family} on {name}, {epochs} epoch(s)", ""]
        lines += [
            "| hidden units | seeds | accuracy % | one pass | ECE % | random gain | rotated AUROC | permuted AUROC |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for kind in HIDDEN if family == "mlp" else CONV:
            some = [r for r in rows if (r["family"], r["data"], r["epochs"], r["kind"]) == (*key, kind)]
            if some:
                percent = ("accuracy", "accuracy_one_pass", "ece", "accuracy_random_gain")
                cells = [spread([100 * r[k] for r in some], 1) for k in percent]
                cells += [spread([r[k] for r in some], 2) for k in ("auroc_rotated", "auroc_permuted")]
                lines.append(f"| {kind} | {len(some)} | " + " | ".join(cells) + " |")
        ours = [r for r in rows if (r["family"], r["data"], r["epochs"], r["kind"]) == (*key, "nsm")]
        if ours:
            cells = [f"{b} bits {spread([100 * r['bits'][b] for r in ours], 1)}" for b in ours[0]["bits"]]
            angles = zip(*(r["entropy_by_angle"] for r in ours), strict=True)
            means = ", ".join(f"{statistics.mean(values):.2f}" for values in angles)
            lines += ["", "nsm with fixed-point weights, accuracy %: " + ", ".join(cells) + "."]
            lines += ["", f"nsm, predictive entropy (nats) of inputs rotated by 0, 30, ..., 180 degrees: {means}."]
        lines.append("")
    if tried := [r for r in every if r not in rows]:
        lines += ["### Other settings of the sampling network, seed 0", ""]
        lines += ["| network | learning rate | target | accuracy % | one pass | ECE % |", "|---" * 6 + "|"]
        for r in tried:
            numbers = " | ".join(f"{100 * r[k]:.1f}" for k in ("accuracy", "accuracy_one_pass", "ece"))
            lines.append(f"| {r['family']}, {r['epochs']} epoch(s) | {r['lr']:g} | {r['target']:g} | {numbers} |")
        lines.append("")
    file = RESULTS / "percentiles.json"
    if file.exists():
        lines += ["### Pre-activations of the last hidden layer over 300 steps", ""]
        lines += ["| network, learning rate | spread, last over first | largest drift of the median |", "|---|---|---|"]
        for key, value in json.loads(file.read_text()).items():
            lines.append(f"| {key} | {value['spread_last_over_first']} | {value['median_drift']} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    """Mean, and half the range over seeds."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f}" + (f" ±{half:.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["mlp", "cnn", "percentiles", "tables"])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--target", type=float, default=TARGET, help="spread of P after initialization")
    parser.add_argument("--kinds", nargs="*", default=[], help="all by default")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    if args.what in ("mlp", "cnn"):
        compare(args.what, args.data, args.epochs, args.seeds, args.kinds, args.lr, args.target)
    elif args.what == "percentiles":
        percentiles()
    else:
        (RESULTS / "tables.md").write_text(tables())
        print(tables())


if __name__ == "__main__":
    main()
