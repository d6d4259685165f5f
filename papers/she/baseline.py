"""The polynomial net beside the exact one: squares and average pools under CKKS, same images, same layers.

::

    python papers/she/baseline.py train               # results/square.npz and baseline.json
    python papers/she/baseline.py encrypt --count 10  # needs layerscope[encrypted]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from classify import RESULTS, accuracy, images

from layerscope.methods import encrypted as she


def network() -> nn.Sequential:
    """The layers of ``classify.network`` with a square for each ReLU and an average for the maximum."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, bias=False),
        nn.BatchNorm2d(8),
        she.Square(),
        nn.Conv2d(8, 16, 3, groups=2, bias=False),
        nn.BatchNorm2d(16),
        she.Square(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(seed: int = 0, epochs: int = 12) -> None:
    """The same training as the exact net's, with gradients clipped, without which squares diverge."""
    from layerscope import training

    torch.set_num_threads(1)
    x, y = images("train")
    torch.manual_seed(seed)
    net = network()
    training.fit(
        net, (x[:-5000], y[:-5000]), epochs=epochs, batch_size=100, optimizer="adamw", lr=5e-3, schedule="onecycle",
        clip=1.0, seed=seed, progress=False,
    )  # fmt: skip
    net.eval()
    record = {"accuracy_float": accuracy(net, *images("test")), "command": "python papers/she/baseline.py train"}
    np.savez(RESULTS / "square.npz", **{k: v.numpy() for k, v in net.state_dict().items()})
    (RESULTS / "baseline.json").write_text(json.dumps(record, indent=1) + "\n")
    print(record)


def encrypt(count: int = 10) -> None:
    """Classify test images under CKKS; errors are measured against the float net."""
    torch.set_num_threads(1)
    net = network().eval()
    with np.load(RESULTS / "square.npz", allow_pickle=False) as arrays:
        net.load_state_dict({k: torch.from_numpy(arrays[k]) for k in arrays.files})
    x, y = images("test")
    baseline = she.CkksNet(net, (1, 14, 14))
    baseline.keygen()
    context = baseline.public_context()
    record = json.loads((RESULTS / "baseline.json").read_text())
    record |= {"ring_degree": baseline.degree, "public_context_bytes": len(context), "images": []}
    for i in range(count):
        start, cpu = time.perf_counter(), time.process_time()
        request = baseline.encrypt(x[i])
        logits = baseline.decrypt(baseline.run(context, request))
        wall, used = time.perf_counter() - start, time.process_time() - cpu
        with torch.no_grad():
            expected = net(x[i : i + 1])[0]
        record["images"].append({
            "image": i,
            "label": int(y[i]),
            "encrypted_class": int(logits.argmax()),
            "float_class": int(expected.argmax()),
            "relative_error": float((logits - expected).abs().max() / expected.abs().max()),
            "wall_seconds": round(wall, 1),
            "cpu_seconds": round(used, 1),
            "request_bytes": len(request),
        })  # fmt: skip
        print(record["images"][-1], flush=True)
        (RESULTS / "baseline.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "encrypt": encrypt})
