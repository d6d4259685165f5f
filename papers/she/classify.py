"""End to end: train, quantise with training, encrypt, classify real test images under encryption, compare bit for bit.

Two commands, because the engine and the trainer may live in two environments::

    python papers/she/classify.py train                 # writes papers/she/results/net.npz and training.json
    python papers/she/classify.py encrypt --count 12   # needs layerscope[encrypted]; writes encrypted-0.json

Network: 14 x 14 Fashion-MNIST (2 x 2 averages), two convolutions, exact ReLU, exact max-pool, one linear layer.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope import data
from layerscope.methods import encrypted as she

HERE = Path(__file__).parent
RESULTS = HERE / "results"
#: Chosen on the training images: 3-bit codes, at most 6 bits into a lookup.
SETTINGS = {"bits": 3, "act_bits": 3, "input_bits": 3, "lookup_bits": 6}


def images(split: str) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST averaged to 14 x 14, in [-1, 1]."""
    found = data.load("fashion-mnist", split)
    return F.avg_pool2d(found.x, 2), found.y


def network() -> nn.Sequential:
    """Two convolutions (the second in two groups), exact ReLU, exact max-pool, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def accuracy(net, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def train(seed: int = 0, epochs: int = 12) -> None:
    """Float training, then training with the quantiser in the loop; the last 5000 training images choose the round."""
    from layerscope import training

    torch.set_num_threads(1)
    x, y = images("train")
    fit_x, fit_y, valid = x[:-5000], y[:-5000], (x[-5000:], y[-5000:])
    test_x, test_y = images("test")
    torch.manual_seed(seed)
    net = network()
    start = time.process_time()
    training.fit(
        net, (fit_x, fit_y), epochs=epochs, batch_size=100, optimizer="adamw", lr=5e-3, schedule="onecycle",
        seed=seed, progress=False,
    )  # fmt: skip
    net.eval()
    after = she.quantize(net, fit_x[:500], **SETTINGS)
    tuned = she.finetune(after, (fit_x, fit_y), fit_x[:500], valid=valid, epochs=2, rounds=4, seed=seed)
    record = {
        "network": str(network()).replace("\n", " "),
        "settings": SETTINGS,
        "test_images": len(test_x),
        "accuracy_float": accuracy(net, test_x, test_y),
        "accuracy_post_training": accuracy(after, test_x, test_y),
        "accuracy_trained_integer": accuracy(tuned, test_x, test_y),
        "cpu_seconds": round(time.process_time() - start, 1),
        "fingerprint": tuned.graph.fingerprint,
        "widths": {layer.name + " " + layer.kind: layer.width for layer in tuned.report.layers},
        "command": f"python papers/she/classify.py train --seed {seed} --epochs {epochs}",
    }
    from layerscope.methods.encrypted.backends.serial import graph_to_bytes

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "net.npz").write_bytes(graph_to_bytes(tuned.graph))
    (RESULTS / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def encrypt(count: int = 12, first: int = 0) -> None:
    """Classify ``count`` test images from ``first`` on under encryption, and hold every logit against the reference."""
    from layerscope.methods.encrypted import plain
    from layerscope.methods.encrypted.backends.serial import graph_from_bytes
    from layerscope.methods.encrypted.network import encode

    graph = graph_from_bytes((RESULTS / "net.npz").read_bytes())
    x, y = images("test")
    start = time.perf_counter()
    compiled = she.compile(graph, "concrete")
    compile_seconds = time.perf_counter() - start
    client, server = compiled.client(), compiled.server()
    start = time.perf_counter()
    client.keygen()
    keygen_seconds = time.perf_counter() - start
    keys = client.evaluation_keys()
    facts = compiled.facts
    record = {
        "fingerprint": graph.fingerprint,
        "engine": f"{client.engine} {client.engine_version}",
        "security_bits": facts.security_bits,
        "failure_bound": facts.failure,
        "bootstraps": facts.bootstraps,
        "compile_seconds": round(compile_seconds, 1),
        "keygen_seconds": round(keygen_seconds, 1),
        "evaluation_key_bytes_sent": len(keys),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} torch threads, shared with other work",
        "images": [],
        "command": f"python papers/she/classify.py encrypt --count {count} --first {first}",
    }
    for i in range(first, first + count):
        codes, clipped = encode(graph, x[i : i + 1], clip=True)
        start, cpu = time.perf_counter(), time.process_time()
        request = client.encrypt(x[i : i + 1], clip=True)
        answer = server.run(request, keys)
        raw = client.decrypt(answer, raw=True)
        wall, used = time.perf_counter() - start, time.process_time() - cpu
        expected = plain.run(graph, codes).reshape(1, -1)
        logits = client.decrypt(answer)
        row = {
            "image": i,
            "label": int(y[i]),
            "encrypted_class": int(logits.argmax()),
            "plain_class": int((expected * torch.from_numpy(graph.output.scale)).argmax()),
            "bit_exact": bool(torch.equal(raw, expected)),
            "clipped": clipped,
            "wall_seconds": round(wall, 1),
            "cpu_seconds": round(used, 1),
            "request_bytes": len(request),
            "answer_bytes": len(answer),
        }
        record["images"].append(row)
        print(row, flush=True)
        record["wall_seconds_median"] = float(np.median([r["wall_seconds"] for r in record["images"]]))
        record["wall_seconds_min"] = float(min(r["wall_seconds"] for r in record["images"]))
        record["cpu_seconds_median"] = float(np.median([r["cpu_seconds"] for r in record["images"]]))
        record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (RESULTS / f"encrypted-{first}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "encrypt": encrypt})
