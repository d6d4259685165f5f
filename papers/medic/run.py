"""The main table of the MEDIC study: every attack, every defence, several seeds, resumable.

    python papers/medic/run.py --attacks badnet blend --seeds 0 1 2          # a part
    python papers/medic/run.py                                               # all of it; hours
    python papers/medic/run.py --table                                       # only print what there is

One line of ``results/rows.jsonl`` is one defence on one poisoned network with one seed, that of both. A row that is
there is not run again; a killed run loses only the row in flight. Poisoned networks are trained on the spot, kept in
memory while their rows are run, and thrown away. No setting is chosen by attack success.
Five attacks (badnet, low, warp, sinusoid, blend) were seen while the defaults were chosen, the others are the test.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerscope import data as datasets
from layerscope import nets, training
from layerscope.data import Dataset
from layerscope.methods import medic
from layerscope.methods.medic import attacks, baselines
from layerscope.methods.medic.attacks import eval as stress

RESULTS = Path(__file__).parent / "results"
NET = "resnet:blocks=1,width=16,preact=true,final_norm=true,stem_stride=2"
Threat = medic.Threat
#: attack -> (threat, rate, mode); composite, adaptive and clean-label are trained in ways of their own
PLAIN: dict[str, tuple[Threat, float, Any]] = {
    "badnet": (Threat(attacks.BadNet(), 0), 0.1, "dirty"),
    "low": (Threat(attacks.BadNet(), 0), 0.005, "dirty"),
    "warp": (Threat(attacks.Warp(), 0), 0.1, "noise"),
    "sinusoid": (Threat(attacks.Sinusoid(), 0), 0.8, "clean"),
    "blend": (Threat(attacks.Blend(0.2), 0), 0.1, "dirty"),
    "reflection": (Threat(attacks.Reflection(), 0), 0.1, "dirty"),
    "polygon": (Threat(attacks.Polygon(), 0, (1,)), 0.03, "dirty"),
    "filter": (Threat(attacks.Filter(), 0, (1,)), 0.03, "dirty"),
}
ATTACKS = (*PLAIN, "clean-label", "composite", "adaptive", "none")


def poisoned(name: str, train: Dataset, seed: int, epochs: int) -> tuple[nn.Module, Threat]:
    """A network trained with the attack, and the threat to judge it by."""
    model = nets.build(NET, "batch", in_shape=train.in_shape, classes=train.classes, seed=seed)
    options: dict[str, Any] = {
        "epochs": epochs, "batch_size": 128, "lr": 0.1, "schedule": "onecycle", "weight_decay": 5e-4,
        "optimizer": "sgd:nesterov=true", "augment": "flip-crop", "seed": seed, "progress": False,
    }  # fmt: skip
    if name == "none":
        training.fit(model, train, **options)
        return model, Threat(attacks.BadNet(), 0)
    if name == "composite":
        _, trigger = attacks.train_composite(model, train, **options)
        return model, Threat(trigger, 2, (0,))
    if name == "adaptive":
        return model, Threat(stress.train_adaptive(model, train, target=0, **options), 0)
    if name == "clean-label":
        threat, rate, mode, adversary = Threat(attacks.BadNet(), 0), 0.15, "clean", attacks.PGD()
    else:
        (threat, rate, mode), adversary = PLAIN[name], None
    chosen = threat.sources if mode != "clean" else None
    data = attacks.Poisoned(
        train, threat.trigger, target=threat.target, rate=rate, mode=mode, sources=chosen, seed=seed
    )
    attacks.train_poisoned(model, data, adversary=adversary, **options)
    return model, threat


def relearned(model: nn.Module, threat: Threat, clean: Dataset, test: Dataset) -> list[float]:
    """Attack success after each of 5 epochs on 1,000 clean samples of which 20 are poisoned."""
    few = attacks.Poisoned(
        clean.take(slice(0, 1000)), threat.trigger, target=threat.target, rate=20 / min(1000, len(clean)),
        sources=threat.sources, value_range=(-1.0, 1.0),
    )  # fmt: skip
    return [s.asr for s in medic.relearn(model, few, test)]


def rows_at(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("attack", "seed", "clean_samples", "train_samples", "attack_epochs", "defence"))


def run(options: argparse.Namespace, path: Path) -> None:
    train, test = datasets.load("fashion-mnist"), datasets.load("fashion-mnist", "test")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(42))
    train = train.take(order[: options.train_samples])
    clean = train.take(slice(0, options.clean_samples))
    known: dict[str, Callable[..., nn.Module]] = {"before": lambda model, clean: model}
    known |= baselines.standard("flip-crop")
    for attack in options.attacks:
        for seed in options.seeds:
            fixed = {
                "attack": attack, "seed": seed, "clean_samples": len(clean), "train_samples": len(train),
                "attack_epochs": options.attack_epochs,
            }  # fmt: skip
            done = {key_of(row) for row in rows_at(path)}
            wanted = [d for d in options.defences or known if key_of({**fixed, "defence": d}) not in done]
            if not wanted:
                continue
            model, threat = poisoned(attack, train, seed, options.attack_epochs)
            for name in wanted:
                started = time.process_time()
                given = {} if name == "before" else {"seed": seed}
                cleaned = known[name](model, clean, **given)
                seconds = time.process_time() - started
                scores = medic.evaluate(
                    cleaned, test, threat.trigger, threat.target, sources=threat.sources, value_range=(-1.0, 1.0)
                )
                row = {
                    **fixed, "defence": name, "acc": scores.acc, "asr": scores.asr, "ra": scores.ra,
                    "n_clean": scores.n_clean, "n_triggered": scores.n_triggered, "cpu_seconds": round(seconds, 2),
                }  # fmt: skip
                if options.relearn and name != "before":
                    row["relearn"] = relearned(cleaned, threat, clean, test)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{attack} seed {seed} {name}: {scores}, {seconds:.0f} s", flush=True)


def table(path: Path) -> str:
    """Mean and range over seeds of every attack and defence, as Markdown."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows_at(path):
        groups.setdefault((row["attack"], row["clean_samples"], row["defence"]), []).append(row)
    lines = ["| attack | clean | defence | seeds | ACC | ASR | RA | CPU s |", "|---|---|---|---|---|---|---|---|"]
    for (attack, clean, defence), found in groups.items():
        cells = []
        for what in ("acc", "asr", "ra"):
            values = [100 * row[what] for row in found]
            spread = f" [{min(values):.1f}, {max(values):.1f}]" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.1f}{spread}")
        seconds = sum(row["cpu_seconds"] for row in found) / len(found)
        lines.append(f"| {attack} | {clean} | {defence} | {len(found)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--defences", nargs="+", choices=["before", *baselines.standard()])
    parser.add_argument("--clean-samples", type=int, default=3000)
    parser.add_argument("--train-samples", type=int, default=60000)
    parser.add_argument("--attack-epochs", type=int, default=8)
    parser.add_argument("--relearn", action="store_true", help="also the curve of learning the backdoor again")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "rows.jsonl"
    if not options.table:
        torch.set_num_threads(1)
        run(options, path)
    print(table(path))


if __name__ == "__main__":
    main()
