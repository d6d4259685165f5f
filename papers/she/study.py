"""Studies on 14 x 14 Fashion-MNIST (first 6000 training and 2000 test images, normalised by 0.286 and 0.32).

::

    python papers/she/study.py qat                         # results/qat.json: 4-bit log weights, depths 4 and 8
    python papers/she/study.py advise                      # results/advice.json: fewer bits and channels
    layerscope study run papers/she/distortion.toml        # KL and tails at every norm; then
    python papers/she/study.py collect distortion          # its store -> results/distortion.jsonl
    layerscope study run papers/she/norms.toml             # the same behind other norms; then  collect norms
    layerscope study run papers/she/survival.toml          # who trains at which depth; then
    python papers/she/study.py collect survival            # its store -> results/survival.jsonl
    python papers/she/study.py tables                      # what the README prints of both
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from layerscope import study as studies
from layerscope.methods import encrypted as she
from layerscope.methods.encrypted import distortion
from layerscope.methods.encrypted.distortion import images

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def write(name: str, record: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")


def qat(depths: tuple[int, ...] = (4, 8), seeds: tuple[int, ...] = (0, 1, 2), bits: int = 4, act_bits: int = 5) -> None:
    """Float, post-training and trained accuracy of 4-bit log weights, both roundings."""
    torch.set_num_threads(1)
    train, test = images("train", 6000), images("test", 2000)
    rows = []
    for depth in depths:
        for seed in seeds:
            start = time.process_time()
            net, _ = distortion.trained_net(depth, "relu", train, 10, seed, 4, 100, 4e-3)
            with torch.no_grad():
                float_accuracy = float((net(test[0]).argmax(1) == test[1]).float().mean())
            for rounding in ("log", "linear"):
                after = she.quantize(net, train[0][:300], bits=bits, act_bits=act_bits, rounding=rounding)
                tuned = she.finetune(after, train, train[0][:300], epochs=2, rounds=3, lr=1e-3, seed=seed)
                row = {
                    "depth": depth,
                    "seed": seed,
                    "bits": bits,
                    "act_bits": act_bits,
                    "rounding": rounding,
                    "float": float_accuracy,
                    "post_training": accuracy(after, test),
                    "trained": accuracy(tuned, test),
                    "cpu_seconds": round(time.process_time() - start, 1),
                }
                rows.append(row)
                print(row, flush=True)
                write("qat.json", {"command": "python papers/she/study.py qat", "rows": rows})


def advise(seed: int = 0, most_loss: float = 0.03) -> None:
    """Fewer bits and channels for a net of one convolution within an accuracy budget, judged on images of their own."""
    from layerscope import training

    torch.set_num_threads(1)
    x, y = images("train", 12000)
    train, valid = (x[:6000], y[:6000]), (x[6000:], y[6000:])
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip
    training.fit(
        net,
        train,
        epochs=10,
        batch_size=100,
        optimizer="adamw",
        lr=5e-3,
        schedule="onecycle",
        seed=seed,
        progress=False,
    )
    net.eval()
    found = she.advise(
        net, (1, 14, 14), calib=train[0][:300], valid=valid, train=train, most_loss=most_loss, tries=24,
        watch=lambda row: print(row.change, row.bootstraps, row.lost, row.verdict, flush=True),
    )  # fmt: skip
    print(found)
    found.to_json(RESULTS / "advice.json")


def accuracy(net: she.QuantizedNet, test: tuple[Tensor, Tensor]) -> float:
    logits = net.decode(net.integers(net.encode(test[0], clip=True)))
    return float((logits.argmax(1) == test[1]).float().mean())


def collect(study: str, store: Path | None = None, hardware: str = "CPU") -> None:
    """Append the finished trials of a study's store to its committed rows, once each.

    Args:
        study: ``survival``, ``distortion`` or ``norms``.
        store: SQLite file, if not the one that `layerscope study run` writes.
        hardware: What they were trained on, for the rows.
    """
    target = RESULTS / f"{study}.jsonl"
    known = {json.dumps(row["params"], sort_keys=True) for row in read(target)}
    keep = compact if study in ("distortion", "norms") else dict
    file = studies.store_path(studies.load(HERE / f"{study}.toml"), store)
    with studies.Store(file) as kept, target.open("a") as out:
        for row in kept.rows():
            params = {k: v for k, v in row.params.items() if k != "device"}
            if row.state == "done" and json.dumps(params, sort_keys=True) not in known:
                out.write(json.dumps({"params": params, "hardware": hardware, **keep(row.result)}) + "\n")


def compact(result: dict[str, Any]) -> dict[str, Any]:
    """A distortion trial with each statistic as one list over the norms, to four digits; None: not finite."""

    def short(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return float(f"{value:.4g}") if math.isfinite(value) else None

    trials = []
    for trial in result["trials"]:
        row = {k: short(v) for k, v in trial.items() if k != "layers"}
        layers = trial["layers"]
        # the store writes what JSON has no number for as text
        row["layers"] = {k: [short(float(layer[k])) for layer in layers] for k in layers[0] if k != "layer"}
        trials.append(row)
    return {"trials": trials}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tables() -> None:
    """The tables of the README, from the committed rows."""
    rows = read(RESULTS / "survival.jsonl")
    trained = {"CPU": "chosen on", "NVIDIA H200": "tested on"}
    print(f"AUROC for an accuracy of at least {ENOUGH}, polynomial activations")
    for hardware, role in trained.items():
        part = [r for r in rows if r["hardware"] == hardware and r["params"]["activation"] != "relu"]
        survived = [r["accuracy"] >= ENOUGH for r in part]
        print(f"{role} {len(part)} nets, {sum(survived)} survive")
        for name, sign in SIGNS.items():
            print(f"  {name:<10} {auroc([sign * float(r['init'][name]) for r in part], survived):.3f}")
        bands = {"above -2": (-2.0, 99.0), "between": (-4.0, -2.0), "below -4": (-99.0, -4.0)}
        for name, (low, high) in bands.items():
            inside = [s for r, s in zip(part, survived, strict=True) if low <= float(r["init"]["contrast"]) < high]
            print(f"  contrast {name:<9} {sum(inside)} of {len(inside)} survive")
    print("one threshold for all but one activation, on that one")
    for held in sorted({r["params"]["activation"] for r in rows} - {"relu"}):
        others = [r for r in rows if r["params"]["activation"] not in (held, "relu")]
        cut = max((x / 20 for x in range(-200, 0)), key=lambda t: (hits(others, t), -abs(t + 2.5)))
        mine = [r for r in rows if r["params"]["activation"] == held]
        print(f"  {held:<8} cut {cut:.2f}: {hits(mine, cut)} of {len(mine)} right")
    print("\ndepth x activation: accuracy (seeds that were trained)")
    cells: dict[tuple[str, int], list[float]] = {}
    for r in rows:
        cells.setdefault((r["params"]["activation"], r["params"]["depth"]), []).append(r["accuracy"])
    depths = sorted({d for _, d in cells})
    print(f"{'':<8}" + "".join(f"{d:>22}" for d in depths))
    for name in ("relu", "line10", "herm2", "quad8", "line1", "herm4", "square"):
        print(f"{name:<8}" + "".join(f"{' '.join(f'{a:.2f}' for a in cells.get((name, d), [])):>22}" for d in depths))
    for study in ("distortion", "norms"):
        distortion_table(study)


def distortion_table(study: str) -> None:
    """The last norm of each net, one number a seed."""
    found: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for r in read(RESULTS / f"{study}.jsonl"):
        for t in r["trials"]:
            found.setdefault((t["norm"], t["mode"], t["activation"], t["depth"]), []).append(t)
    print(f"\n{study}, last norm, one number a seed: accuracy; KL from the ReLU net's; kurtosis; largest |z|; finite")
    for (norm, mode, name, depth), cell in sorted(found.items()):
        cell = sorted(cell, key=lambda t: int(t["seed"]))
        last = {k: [t["layers"][k][-1] for t in cell] for k in ("kl", "kurtosis", "absmax", "finite_fraction")}
        columns = [[t["accuracy"] for t in cell], *last.values()]
        text = "; ".join(" ".join("-" if v is None else f"{v:.3g}" for v in column) for column in columns)
        print(f"  {norm:<15}{mode:<8} {name:<7}{depth:>3}  {text}")


ENOUGH = 0.7
#: Statistic -> +1 where large values speak for survival.
SIGNS = {"contrast": 1, "rank": 1, "agreement": 1, "bulk": 1, "samples": 1, "kurtosis": -1, "absmax": -1}


def hits(rows: list[dict[str, Any]], cut: float) -> int:
    return sum((float(r["init"]["contrast"]) > cut) == (r["accuracy"] >= ENOUGH) for r in rows)


def auroc(scores: list[float], labels: list[bool]) -> float:
    """Share of pairs (one survives, one does not) that the score puts in the right order."""
    yes = [s for s, y in zip(scores, labels, strict=True) if y]
    no = [s for s, y in zip(scores, labels, strict=True) if not y]
    return sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"qat": qat, "advise": advise, "collect": collect, "tables": tables})
