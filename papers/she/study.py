"""Two studies on 14 x 14 Fashion-MNIST (first 6000 training and 2000 test images, normalised by 0.286 and 0.32).

::

    python papers/she/study.py qat          # results/qat.json: 4-bit log weights after training, depths 4 and 8
    python papers/she/study.py distortion   # results/distortion.json: polynomial activations against depth
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from layerscope import data
from layerscope.methods import encrypted as she
from layerscope.methods.encrypted import distortion

RESULTS = Path(__file__).parent / "results"


def images(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1], averaged 2 x 2, normalised."""
    found = data.load("fashion-mnist", split)
    x = F.avg_pool2d((found.x[:count] + 1) / 2, 2)
    return (x - 0.286) / 0.32, found.y[:count]


def write(name: str, record: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")


def qat(depths: tuple[int, ...] = (4, 8), seeds: tuple[int, ...] = (0,), bits: int = 4, act_bits: int = 5) -> None:
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


def accuracy(net: she.QuantizedNet, test: tuple[Tensor, Tensor]) -> float:
    logits = net.decode(net.integers(net.encode(test[0], clip=True)))
    return float((logits.argmax(1) == test[1]).float().mean())


def distort(depths: tuple[int, ...] = (2, 4, 6, 8), seeds: tuple[int, ...] = (0,)) -> None:
    """Square and Hermite activations, trained and swapped, with tail statistics at every norm."""
    torch.set_num_threads(1)
    train, test = images("train", 6000), images("test", 2000)
    trials = []
    for depth in depths:
        study = distortion.study_activations(train, test, depths=(depth,), seeds=seeds)
        trials += study.to_dict()["trials"]
        for t in study.trials:
            print(
                t.depth, t.activation, t.mode, t.seed, round(t.accuracy, 3), t.last, round(t.init_growth, 1), flush=True
            )
        write("distortion.json", {"command": "python papers/she/study.py distortion", "trials": trials})


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"qat": qat, "distortion": distort})
