r"""Train and measure every network of the comparison; finished trials are kept, so that a stopped run goes on.

python papers/neural-sampling-machine/reproduce.py cnn --name small --data fashion-mnist:size=14 --pool stride \
    --images 10000 --epochs 8
python papers/neural-sampling-machine/reproduce.py cnn --name digits-cnn --data digits --pool stride --epochs 40
python papers/neural-sampling-machine/reproduce.py cnn --epochs 30 --device cuda
python papers/neural-sampling-machine/reproduce.py mlp --epochs 30 --device cuda
python papers/neural-sampling-machine/reproduce.py mlp --data digits --epochs 20
python papers/neural-sampling-machine/reproduce.py percentiles
python papers/neural-sampling-machine/reproduce.py tables

Several learning rates: the first seed is trained with each, and the one that does best on the held-back training images
is used for every seed. Test images are looked at once, by the networks that are in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

import torch
from loop import train
from models import HIDDEN, cnn, mlp
from tables import tables
from torch import Tensor, nn

from layerscope import data
from layerscope.methods.sampling import (
    SamplingLayer,
    auroc,
    fixed_point,
    initialize,
    negative_log_likelihood,
    predict,
    predictive_entropy,
    reliability,
    rotate,
)

RESULTS = Path(__file__).parent / "results"
HELD_BACK = 5000  # training images, the last ones, on which settings are chosen; never trained on
GAIN = 0.7  # standard deviation of the log of the random gains
#: Kinds that the claims are about: all of their seeds come first.
FIRST = (
    "nsm", "relu, batch norm", "sign, erf gradient", "relu", "nsm, ordinary first layer", "relu, weight norm",
    "sign, straight-through, batch norm", "sign, straight-through, weight norm", "relu, dropout",
)  # fmt: skip
ANGLES = range(0, 181, 30)
#: Learning rates tried for every kind.
RATES = (1e-3, 3e-3, 1e-2)
#: What is measured beside accuracy on so many test images, the first ones.
FEW = 2000


@dataclass(frozen=True)
class Trial:
    """One training: what names it in the results."""

    family: str
    kind: str
    data: str
    epochs: int
    seed: int
    pool: str = "max"
    batch: int = 100
    target: float = 0.0
    """Spread of P after initialization, of sampling networks."""
    copies: int = 1
    """Samples of every image in a step, of sampling networks."""
    centred: bool = False
    """Whether sampling units counted their inputs from the running mean in training."""
    images: int = 0
    """Training images, the first ones; 0 for all but those held back."""


def stochastic(model: nn.Module) -> bool:
    layers = [m for m in model.modules() if isinstance(m, SamplingLayer)]
    return any(m.mode not in ("sign", "mean") for m in layers)


def probabilities(model: nn.Module, x: Tensor, passes: int, dropout: bool = False) -> Tensor:
    """Softmax [N, K], averaged over passes where the network is stochastic; optionally with dropout left on."""
    model.eval()
    if stochastic(model):
        return predict(model, x, passes, chunk=10, batch_size=250 if x.device.type == "cpu" else 2000, seed=0).probs
    noisy = dropout or any(type(m).__name__ == "InputNoise" for m in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.training = dropout
    torch.manual_seed(0)
    with torch.no_grad():
        parts = [
            torch.stack([model(p).double().softmax(-1) for _ in range(passes if noisy else 1)]).mean(0)
            for p in x.split(1000)
        ]
    return torch.cat(parts)


def accuracy(probs: Tensor, y: Tensor) -> float:
    return float((probs.argmax(-1) == y).double().mean())


def hidden_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | SamplingLayer)][:-1]


def random_gains(model: nn.Module, seed: int) -> None:
    """Multiply the weights into every hidden unit by its own log-normal gain, in place."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in hidden_layers(model):
            gain = torch.exp(GAIN * torch.randn(len(layer.weight), generator=g)).to(layer.weight.device)
            shape = (-1, *[1] * (layer.weight.ndim - 1))
            if hasattr(layer, "parametrizations"):  # weight norm: the gain of a synapse acts behind the norm
                layer.parametrizations.weight.original0 *= gain.view(shape)
            else:
                layer.weight *= gain.view(shape)


def strangers(x: Tensor, name: str) -> dict[str, Tensor]:
    """Inputs that the network was not made for: turned, with permuted pixels, of another data set."""
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(0)).to(x.device)
    other = f"{'digits' if name.startswith('fashion-mnist') else 'fashion-mnist'}:size={x.shape[-1]}"
    return {
        "rotated": rotate(x, 90),
        "permuted": x.flatten(1)[:, order].view_as(x),
        "other": data.load(other, split="test").x[: len(x)].to(x.device),
    }


def measured(model: nn.Module, x: Tensor, y: Tensor, name: str, passes: int, dropout: bool) -> dict[str, object]:
    """Accuracy, calibration and uncertainty of a trained network."""
    probs = probabilities(model, x, passes, dropout)
    few = x[:FEW]
    inside = predictive_entropy(probs[: len(few)])
    return {
        "accuracy": accuracy(probs, y),
        "accuracy_one_pass": accuracy(probabilities(model, x, 1, dropout), y),
        "ece": reliability(probs, y).ece,
        "nll": negative_log_likelihood(probs, y),
        "auroc": {
            k: auroc(inside, predictive_entropy(probabilities(model, v, passes, dropout)))
            for k, v in strangers(few, name).items()
        },
        "entropy_by_angle": [
            round(float(predictive_entropy(probabilities(model, rotate(few[:500], a), passes, dropout)).mean()), 4)
            for a in ANGLES
        ],
    }


def split(trial: Trial, device: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training images, the first ones; and held-back ones, the last."""
    both = data.load(trial.data)
    held = min(HELD_BACK, len(both.x) // 10)
    images = min(trial.images or len(both.x), len(both.x) - held)
    x, y = both.x.to(device), both.y.to(device)
    return (x[:images], y[:images]), (x[-held:], y[-held:])


@dataclass(frozen=True)
class Trained:
    """A network after training."""

    model: nn.Module
    lr: float
    loss: float
    diverged: bool
    seconds: float
    held_back: float
    """Accuracy on the held-back training images."""


def trained(trial: Trial, lr: float, passes: int, device: str) -> Trained:
    """Train one network; test images are not touched."""
    (x, y), aside = split(trial, device)
    torch.manual_seed(trial.seed)
    made = mlp(trial.kind, x[0].numel()) if trial.family == "mlp" else cnn(trial.kind, trial.pool, x.shape[-1])
    model = made.to(device)
    if any(isinstance(m, SamplingLayer) for m in model.modules()):
        initialize(model, x[:500], trial.target, trial.seed)
    start = time.perf_counter() if device == "cuda" else time.process_time()
    loss, diverged = train(
        model, x, y, epochs=trial.epochs, batch=trial.batch, lr=lr, copies=trial.copies, seed=trial.seed,
        centre=trial.centred,
    )  # fmt: skip
    seconds = (time.perf_counter() if device == "cuda" else time.process_time()) - start
    right = accuracy(probabilities(model, aside[0], min(passes, 10)), aside[1])
    print(f"  {trial.kind}, seed {trial.seed}, rate {lr:g}: {right:.4f} held back ({seconds:.1f} s)", flush=True)
    return Trained(model, lr, loss, diverged, seconds, right)


def row_of(trial: Trial, chosen: Trained, tried: dict[str, float], args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure a trained network; one with dropout gives a second row, with the masks left on."""
    test, model, passes = data.load(trial.data, split="test"), chosen.model, args.passes
    x, y = test.x[: args.test_images].to(args.device), test.y[: args.test_images].to(args.device)
    common = {
        **asdict(trial), "lr": chosen.lr, "passes": passes, "test_images": len(x), "train_loss": chosen.loss,
        "diverged": chosen.diverged, "seconds": round(chosen.seconds, 1), "accuracy_held_back": chosen.held_back,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "torch": torch.__version__,
    }  # fmt: skip
    if tried:
        common["held_back_by_rate"] = tried
    rows: list[dict[str, object]] = [{**common, **measured(model, x, y, trial.data, passes, False)}]
    if trial.kind == "relu, dropout":
        left_on = measured(model, x, y, trial.data, passes, True)
        rows.append({**common, "kind": "relu, dropout, masks left on", **left_on})
    if stochastic(model):
        rows[0]["bits"] = {}
        for bits in range(2, 9):
            with fixed_point(model, bits):
                rows[0]["bits"][str(bits)] = accuracy(probabilities(model, x, min(passes, 10)), y)
        rows[0]["by_passes"] = {
            str(s): {"accuracy": accuracy(p, y), "ece": reliability(p, y).ece, "nll": negative_log_likelihood(p, y)}
            for s in (1, 3, 10, 30, 100)
            if s <= passes
            for p in [probabilities(model, x, s)]
        }
    random_gains(model, trial.seed)
    rows[0]["accuracy_random_gain"] = accuracy(probabilities(model, x, passes), y)
    return rows


def key(row: dict[str, object]) -> tuple[object, ...]:
    """What names a trial: its settings but for the rate, which the rule chooses."""
    return tuple(row.get(f.name, f.default) for f in fields(Trial))


def trials(args: argparse.Namespace) -> list[Trial]:
    """In order of importance: every seed of the networks that the claims are about, then the others."""
    kinds = args.kinds or [*FIRST, *(k for k in HIDDEN if k not in FIRST)]
    fixed = {"pool": args.pool if args.what == "cnn" else "none", "batch": args.batch, "images": args.images}
    units = {"target": args.target, "copies": args.copies, "centred": not args.not_centred}
    sampling = {kind: units if kind.startswith(("nsm", "sign, erf")) else {} for kind in kinds}
    halves = [kinds] if args.kinds else [kinds[: len(FIRST)], kinds[len(FIRST) :]]
    return [
        Trial(args.what, kind, args.data, args.epochs, seed, **fixed, **sampling[kind])
        for half in halves
        for seed in range(args.seeds)
        for kind in half
    ]


def compare(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    index, of = map(int, args.part.split("/"))
    file = args.out / f"{args.name or args.what}{'' if of == 1 else f'-{index}'}.jsonl"
    every = trials(args)
    mine = list(dict.fromkeys(trial.kind for trial in every))[index::of]
    for trial in every:
        if trial.kind not in mine:
            continue
        rows = {key(row): row for path in args.out.glob("*.jsonl") for row in rows_of(path) if row["lr"] in args.lr}
        if astuple(trial) in rows:
            continue
        first = rows.get(astuple(replace(trial, seed=0)))
        rates = args.lr if first is None else [first["lr"]]
        runs = [trained(trial, lr, args.passes, args.device) for lr in rates]
        best = max(runs, key=lambda r: r.held_back)
        tried = {f"{r.lr:g}": r.held_back for r in runs} if len(runs) > 1 else {}
        for row in row_of(trial, best, tried, args):
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(
                f"{row['family']} {row['pool']} {row['data']} seed {row['seed']} lr {row['lr']:g} {row['kind']}: "
                f"{row['accuracy']:.4f} ece {row['ece']:.3f} ({row['seconds']} s)",
                flush=True,
            )


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def percentiles(target: float, copies: int, images: int = 30000) -> None:
    """15th, 50th and 85th percentile of the pre-activations into the last hidden layer while training one epoch."""
    out = {}
    both = data.load("fashion-mnist")
    for kind in ("nsm", "noisy relu", "sign, straight-through", "relu, batch norm"):
        for lr in (1e-3, 1e-2):
            torch.manual_seed(0)
            model, rows = mlp(kind, 784), []
            if kind == "nsm":
                initialize(model, both.x[:500], target)
            last = hidden_layers(model)[-1]

            def watch(module: nn.Module, args: tuple, output: Tensor, rows: list = rows) -> None:
                with torch.no_grad():
                    p = module.pre_activation(args[0]) if isinstance(module, SamplingLayer) else output
                    quantiles = torch.quantile(p.flatten()[:20000], torch.tensor([0.15, 0.5, 0.85]))
                rows.append([round(float(v), 4) for v in quantiles])

            # a batch norm works on the output of its linear layer: the pre-activation is behind it
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
            (norms[-1] if norms else last).register_forward_hook(watch)
            x, y = both.x[:images], both.y[:images]
            train(model, x, y, epochs=1, batch=100, lr=lr, copies=copies, seed=0, centre=True)
            spread = [r[2] - r[0] for r in rows]
            drift = max(abs(r[1] - rows[0][1]) for r in rows)
            out[f"{kind}, lr {lr:g}"] = {
                "percentiles": rows[:: max(1, len(rows) // 60)],
                "spread_last_over_first": round(statistics.mean(spread[-10:]) / statistics.mean(spread[:10]), 2),
                "median_drift": round(drift, 3),
            }
            print(kind, lr, out[f"{kind}, lr {lr:g}"]["spread_last_over_first"], round(drift, 3), flush=True)
    (RESULTS / "percentiles.json").write_text(json.dumps(out) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["mlp", "cnn", "percentiles", "tables"])
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist or digits, with options")
    parser.add_argument("--name", default="", help="of the file of results; by default what is run")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--pool", default="avg", choices=["max", "avg", "stride"], help="what halves the CNN's maps")
    parser.add_argument("--lr", type=float, nargs="*", default=list(RATES))
    parser.add_argument("--target", type=float, default=4.0, help="spread of P after initialization")
    parser.add_argument("--copies", type=int, default=4, help="samples of every image in one step of a sampling net")
    parser.add_argument("--not-centred", action="store_true", help="inputs of sampling units as they are")
    parser.add_argument("--kinds", nargs="*", default=[], help="all by default")
    parser.add_argument("--images", type=int, default=0, help="training images; 0 for all")
    parser.add_argument("--passes", type=int, default=20, help="averaged at test time")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", default="0/1", help="INDEX/OF: only every OF-th kind, to run several processes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    if args.what in ("mlp", "cnn"):
        compare(args)
    elif args.what == "percentiles":
        percentiles(args.target, args.copies)
    else:
        text = tables([row for path in sorted(RESULTS.glob("*.jsonl")) for row in rows_of(path)])
        (RESULTS / "tables.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
