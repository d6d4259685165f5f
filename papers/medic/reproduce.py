"""The evidence of the MEDIC card, in one resumable command.

    layerscope reproduce medic                                   # everything: hours on two cores
    layerscope reproduce medic --stages main --seeds 0           # a part
    layerscope reproduce medic --workers cuda cuda cuda cpu      # one process for each device named
    python papers/medic/tables.py                                # the tables of what there is

One line of ``results/*.jsonl`` is one defence on one poisoned network; a row that is there is not run again, and a
killed run loses only the rows in flight. Work is done in order of importance: the main table seed by seed, the network
without poison under every trigger (the floor), low poisoning, less clean data, other networks, ablations. Poisoned
networks are kept in a temporary folder while the run lasts, or in ``--victims FOLDER`` so that the next run need not
train them again. No setting is chosen by attack success.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from bed import ATTACKS, RANGE, Bed, Threat, make_bed, poisoned, threat_of
from defences import APART, Defence, ablations, main_table
from torch import nn

from layerscope import training
from layerscope.methods import medic
from layerscope.methods.medic import attacks

RESULTS = Path(__file__).parent / "results"
STAGES = ("main", "floor", "low", "budget", "nets", "ablations")
KEY = ("net", "attack", "seed", "clean", "defence", "victim")
FEW = ("badnet", "blend", "composite")


@dataclass(frozen=True)
class Unit:
    """Some defences on one poisoned network: what one process does in one go."""

    stage: str
    net: str
    attack: str
    seed: int
    clean: int
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """A name of its own."""
        return f"{self.stage}-{self.net}-{self.attack}-{self.seed}-{self.clean}"


def units(options: argparse.Namespace) -> list[Unit]:
    """All work, the most important first."""
    full, less = options.clean, round(0.4 * options.clean)
    #: of what runs at one seed only
    one = options.seeds[len(options.seeds) // 2]
    table, changed = tuple(main_table()), tuple(ablations())
    made: list[Unit] = []

    def add(stage: str, net: str, attack: str, seed: int, clean: int, names: Sequence[str]) -> None:
        made.append(Unit(stage, net, attack, seed, clean, tuple(names)))

    for seed in options.seeds:
        for attack in (*ATTACKS, "none"):
            add("main", "resnet", attack, seed, full, ("before", *table))
        add("floor", "resnet", "none", seed, 0, tuple(f"floor {attack}" for attack in (*ATTACKS, "low")))
    for seed in options.seeds:
        add("low", "resnet", "low", seed, full, ("before", *table))
    for attack in ATTACKS:
        add("budget", "resnet", attack, one, less, table)
    for net in ("vgg", "groupnorm"):
        for attack in (*FEW, "none"):
            add("nets", net, attack, options.seeds[0], full, ("before", *table))
    for attack in FEW:
        add("ablations", "resnet", attack, one, full, changed)
    made = [u for u in made if u.stage in options.stages and (not options.attacks or u.attack in options.attacks)]
    if options.defences:
        made = [replace(u, names=tuple(n for n in u.names if n in options.defences)) for u in made]
    return made


def rows_in(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """All finished rows of a folder by key; a line cut off in the middle does not count."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[tuple(row[k] for k in KEY)] = row
    return found


def relearned(model: nn.Module, threat: Threat, bed: Bed, clean: int) -> list[float]:
    """Attack success after each of 5 epochs on 1,000 clean samples of which 20 are poisoned, on 2,000 test images."""
    some = bed.clean(min(1000, clean))
    few = attacks.Poisoned(
        some, threat.trigger, target=threat.target, rate=20 / len(some), sources=threat.sources, value_range=RANGE
    )
    return [round(s.asr, 4) for s in medic.relearn(model, few, bed.test.take(slice(0, 2000)))]


class Worker:
    """Takes units that nobody else has, until there are none or the time is over."""

    def __init__(self, device: str, options: argparse.Namespace, temporary: Path, number: int) -> None:
        self.options, self.temporary = options, temporary
        self.bed = make_bed(
            device, options.train_samples, options.test_samples, options.victim_epochs, options.victim_batch
        )
        self.defences: dict[str, Defence] = main_table() | ablations()
        self.victim = f"{len(self.bed.train)}x{self.bed.epochs}/{self.bed.batch_size}"
        #: the one defence that does not look at the poisoned network: trained once for all attacks
        self.scratch: dict[tuple[str, int, int], tuple[nn.Module, medic.Report | None, float]] = {}
        self.out = options.out / f"rows-{number}.jsonl"
        self.device = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"

    def run(self) -> int:
        """Do it; returns how many rows failed, each told on stderr."""
        failed = 0
        for unit in units(self.options):
            done = rows_in(self.options.out)
            wanted = [n for n in unit.names if tuple(self._key(unit, n)[k] for k in KEY) not in done]
            if not wanted or not self._claim(unit.title):
                continue
            model, threat = self._victim(unit.net, unit.attack, unit.seed)
            for name in wanted:
                if time.time() > self.options.deadline:
                    return failed
                try:
                    row = {**self._key(unit, name), **self._row(unit, name, model, threat)}
                except Exception:  # whatever it is, the other rows are worth having
                    traceback.print_exc()
                    failed += 1
                    continue
                with self.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{unit.title} {name}: acc {row['acc']} asr {row['asr']} {row['seconds']:.0f} s", flush=True)
        return failed

    def _key(self, unit: Unit, name: str) -> dict[str, Any]:
        attack, defence, clean = unit.attack, name, unit.clean
        if name.startswith("floor "):
            attack, defence, clean = name.removeprefix("floor "), "floor", self.options.clean
        return {
            "net": unit.net, "attack": attack, "seed": unit.seed, "clean": clean, "defence": defence,
            "victim": self.victim,
        }  # fmt: skip

    def _row(self, unit: Unit, name: str, model: nn.Module, threat: Threat) -> dict[str, Any]:
        seconds, report, cleaned = 0.0, None, model
        if name.startswith("floor "):
            attack = name.removeprefix("floor ")
            threat = threat_of(attack, self.bed) or self._victim(unit.net, attack, unit.seed)[1]
        elif name != "before":
            try:
                cleaned, report, seconds = self._cleaned(unit, name, model)
            except medic.MedicError as error:
                return {"acc": None, "asr": None, "ra": None, "seconds": 0.0, "why": str(error)}
        scores = medic.evaluate(
            cleaned, self.bed.test, threat.trigger, threat.target, sources=threat.sources, value_range=RANGE,
            batch_size=1000,
        )  # fmt: skip
        held = training.evaluate(cleaned, self.bed.held, batch_size=1000).accuracy
        row = {
            "acc": scores.acc, "asr": round(scores.asr, 5), "ra": round(scores.ra, 5), "held": held,
            "n_clean": scores.n_clean, "n_triggered": scores.n_triggered, "seconds": round(seconds, 2),
            "device": self.device,
        }  # fmt: skip
        if report is not None:
            row["effective_weight"], row["steps"] = round(report.effective_clone_weight, 5), report.steps
        if name != "before":
            row["relearn"] = relearned(cleaned, threat, self.bed, self.options.clean)
        return row

    def _cleaned(self, unit: Unit, name: str, model: nn.Module) -> tuple[nn.Module, medic.Report | None, float]:
        """What a defence returns, and its seconds."""
        key = (unit.net, unit.seed, unit.clean)
        if name == "scratch" and key in self.scratch:
            return copy.deepcopy(self.scratch[key])
        started = time.perf_counter()
        cleaned, report = self.defences[name](model, self.bed.clean(unit.clean), APART + unit.seed)
        found = cleaned, report, time.perf_counter() - started
        if name == "scratch":
            self.scratch[key] = copy.deepcopy(found)
        return found

    def _victim(self, net: str, attack: str, seed: int) -> tuple[nn.Module, Threat]:
        path = (self.options.victims or self.temporary) / f"{net}-{attack}-{seed}-{self.victim.replace('/', '-')}.pt"
        if not path.exists():
            own = path.with_suffix(f".{os.getpid()}")
            # a folder of this study: nothing in it comes from elsewhere
            torch.save(poisoned(net, attack, seed, self.bed), own)
            own.replace(path)
        found: tuple[nn.Module, Threat] = torch.load(path, map_location=self.bed.train.x.device, weights_only=False)
        return found

    def _claim(self, title: str) -> bool:
        try:
            os.close(os.open(self.temporary / f"{title}.claim", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def work(device: str, options: argparse.Namespace, temporary: str, number: int) -> None:
    torch.set_num_threads(1)
    # what Adam keeps of gradients that died out, and the smallest weights of importance, slow a CPU down
    torch.set_flush_denormal(True)
    if failed := Worker(device, options, Path(temporary), number).run():
        raise SystemExit(f"{failed} rows failed")


def merge(folder: Path) -> None:
    """One file of all rows, in order."""
    rows = rows_in(folder)
    whole = folder / "rows.jsonl.new"
    whole.write_text("".join(json.dumps(rows[k]) + "\n" for k in sorted(rows, key=str)))
    whole.replace(folder / "rows.jsonl")
    for path in folder.glob("rows-*.jsonl"):
        path.unlink()


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reproduce medic", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", choices=(*ATTACKS, "low", "none"), help="only these")
    parser.add_argument("--defences", nargs="+", help="only these rows")
    parser.add_argument("--workers", nargs="+", default=["cpu", "cpu"], help="a device for each process")
    parser.add_argument("--clean", type=int, default=3000, help="clean samples of the main table")
    parser.add_argument("--train-samples", type=int, default=60_000)
    parser.add_argument("--test-samples", type=int, default=10_000)
    parser.add_argument("--victim-epochs", type=int, default=8)
    parser.add_argument("--victim-batch", type=int, default=256)
    parser.add_argument("--victims", type=Path, help="keep the poisoned networks in this folder, and use those there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--deadline", type=float, default=float("inf"), help="start no row after this time (epoch s)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.victims:
        options.victims.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        print("\n".join(f"{u.title}: {len(u.names)} rows" for u in units(options)))
        return
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="medic-") as temporary:
        if len(options.workers) == 1:
            work(options.workers[0], options, temporary, 0)
        else:
            processes = [
                start.Process(target=work, args=(device, options, temporary, n))
                for n, device in enumerate(options.workers)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(p.exitcode for p in processes):
                raise SystemExit("a process failed; what is finished is kept: run the same command again")
    merge(options.out)


if __name__ == "__main__":
    main()
