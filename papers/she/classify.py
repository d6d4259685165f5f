"""End to end: train, quantise with training, encrypt, classify real test images under encryption, compare bit for bit.

Several commands, because the engine and the trainer may live in two environments; the last can be interrupted::

    python papers/she/classify.py train                           # results/net.npz and training.json
    python papers/she/classify.py check                           # the committed net under the present code
    python papers/she/classify.py prepare --folder F              # needs layerscope[encrypted]; the files of both sides
    python papers/she/classify.py encrypt --folder F --count 12   # results/encrypted.json, image by image

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


def training_images() -> tuple[Tensor, Tensor]:
    """For ``layerscope encrypted advise`` and ``compile``: ``--data papers/she/classify.py:training_images``."""
    return images("train")


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
    RESULTS.mkdir(exist_ok=True)
    torch.save(net.state_dict(), RESULTS / "float.pt")
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


def check(count: int = 256) -> None:
    """The committed net under the present code: accuracy, price, gates against the reference, the encrypted answers."""
    from layerscope.methods.encrypted.backends.serial import graph_from_bytes
    from layerscope.methods.encrypted.lowering import Settings
    from layerscope.methods.encrypted.network import QuantizedNet

    graph = graph_from_bytes((RESULTS / "net.npz").read_bytes())
    record = json.loads((RESULTS / "encrypted.json").read_text())
    net = QuantizedNet(graph, Settings(**SETTINGS))
    x, y = images("test")
    codes = net.encode(x, clip=True)
    answers = net.integers(codes)
    classes = net.decode(answers).argmax(1)
    circuit = she.CircuitNet(graph)
    gates = torch.as_tensor(circuit.run(codes[:count].numpy())).reshape(count, -1)
    audit, price = circuit.audit(), she.cost(net, accumulators=("csa",))
    same = [row["encrypted_class"] == int(classes[row["image"]]) for row in record["images"]]
    print(f"same network as in encrypted.json: {graph.fingerprint == record['fingerprint']}")
    print(f"accuracy {float((classes == y).float().mean()):.4f} on {len(y)}")
    print(f"{audit.gates} gates, AND-depth {audit.and_depth}: {audit.gates * 0.013 / 60:.1f} min at 13 ms a gate")
    print(f"{price.bootstraps} bootstraps, {price.lookup_seconds:.1f} CPU s by the probed lookups")
    print(
        f"gates equal the reference on {count} images: {bool(torch.equal(gates, answers[:count].reshape(count, -1)))}"
    )
    print(f"encrypted answers equal the reference: {sum(same)} of {len(same)}")


def prepare(folder: Path) -> None:
    """Compile the trained net and draw keys; writes the files of both sides and begins results/encrypted.json."""
    from layerscope.methods.encrypted.backends.serial import graph_from_bytes

    folder.mkdir(parents=True, exist_ok=True)
    graph = graph_from_bytes((RESULTS / "net.npz").read_bytes())
    times = [time.process_time()]
    compiled = she.compile(graph, "concrete")
    times.append(time.process_time())
    client = compiled.client()
    client.keygen(folder / "key", overwrite=True)
    times.append(time.process_time())
    client.save(folder / "net.client")
    compiled.server().save(folder / "net.server")
    facts = compiled.facts
    record = {
        "fingerprint": graph.fingerprint,
        "engine": f"{client.engine} {client.engine_version}",
        "security_bits": facts.security_bits,
        "failure_bound": facts.failure,
        "bootstraps": facts.bootstraps,
        "compile_cpu_seconds": round(times[1] - times[0], 1),
        "keygen_cpu_seconds": round(times[2] - times[1], 1),
        "evaluation_key_bytes_sent": (folder / "key.evaluation").stat().st_size,
        "server_file_bytes": (folder / "net.server").stat().st_size,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} torch threads, shared with other work",
        "images": [],  # answers under other keys, or of another network, are another record
        "command": "python papers/she/classify.py prepare --folder F; python papers/she/classify.py encrypt --folder F",
    }
    (RESULTS / "encrypted.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def encrypt(folder: Path, count: int = 12, first: int = 0) -> None:
    """Classify test images under encryption, every logit held against the reference; images done are not repeated."""
    from layerscope.methods.encrypted import plain
    from layerscope.methods.encrypted.backends.serial import graph_from_bytes
    from layerscope.methods.encrypted.network import encode

    graph = graph_from_bytes((RESULTS / "net.npz").read_bytes())
    record = json.loads((RESULTS / "encrypted.json").read_text())
    x, y = images("test")
    client, server = she.Client.load(folder / "net.client"), she.Server.load(folder / "net.server")
    client.load_keys(folder / "key")
    keys = client.evaluation_keys()
    done = {row["image"] for row in record["images"]}
    for i in (n for n in range(first, first + count) if n not in done):
        codes, clipped = encode(graph, x[i : i + 1], clip=True)
        start, cpu = time.perf_counter(), time.process_time()
        request = client.encrypt(x[i : i + 1], clip=True)
        answer = server.run(request, keys)
        raw = client.decrypt(answer, raw=True, request=request)
        wall, used = time.perf_counter() - start, time.process_time() - cpu
        expected = plain.run(graph, codes).reshape(1, -1)
        row = {
            "image": i,
            "label": int(y[i]),
            "encrypted_class": int(client.decrypt(answer).argmax()),
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
        for kind in ("wall", "cpu"):
            record[f"{kind}_seconds_median"] = float(np.median([r[f"{kind}_seconds"] for r in record["images"]]))
        record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (RESULTS / "encrypted.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "check": check, "prepare": prepare, "encrypt": encrypt})
