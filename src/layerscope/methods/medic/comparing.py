"""Several defences on one network under several triggers, read against a network without poison."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from layerscope._bar import Bar
from layerscope.data import Dataset
from layerscope.errors import did_you_mean
from layerscope.methods.medic.attacks.images import Range
from layerscope.methods.medic.attacks.triggers import Trigger
from layerscope.methods.medic.baselines.fresh import Scratch
from layerscope.methods.medic.checks import as_clean
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.keeping import Finished, Kept, fingerprint, settings_of
from layerscope.methods.medic.records import Entry, Table
from layerscope.methods.medic.scores import evaluate


class NoNewNetwork(MedicError):
    """A defence that breaks its contract, where one that cannot work says so with a plain MedicError."""


@dataclass(frozen=True)
class Threat:
    """A trigger, the class it leads to, and the classes it leads from (all others by default)."""

    trigger: Trigger
    target: int
    sources: tuple[int, ...] | None = None


def compare(
    defences: Mapping[str, Callable[..., nn.Module]],
    model: nn.Module,
    clean: Any,
    test: Any,
    triggers: Mapping[str, Threat | tuple[Trigger, int]],
    *,
    seeds: Sequence[int] = (0,),
    floor: nn.Module | Callable[..., nn.Module] | None = None,
    value_range: Range | None = None,
    progress: bool | None = None,
    keep: str | Path | None = None,
) -> Table:
    """ACC, ASR and RA of every defence under every trigger, with counts, spread over seeds, and run time.

    The row ``before`` is the model itself; the row ``floor`` is a network without poison: only what a trigger does
    beyond that is backdoor. Nothing is chosen by attack success.

    Args:
        defences: name -> ``(model, clean) -> model``; called with ``seed=`` if it takes one.
        model: the suspicious network; it is not touched.
        clean: trusted clean data, all that a defence sees.
        test: clean test data.
        triggers: name, with the strength in it, -> :class:`Threat` or (trigger, target).
        seeds: one run of every defence for each.
        floor: a network trained without poison, or a defence that trains one from scratch on the clean data, by
            default ``baselines.Scratch()``.
        value_range: (black, white) of the images.
        progress: show a bar; by default where stderr is a terminal.
        keep: file that gets the scores of every run as it finishes; called again with it, only the others run.

    A defence that says with a MedicError that it cannot work on this network becomes a note in the table, not a row.

    Raises:
        MedicError: no trigger, no seed, a name that is taken, a defence that gives no new network, a floor that
            cannot be trained, or a file ``keep`` of another comparison.
    """
    if not triggers or not seeds:
        raise MedicError("compare needs at least one trigger and one seed")
    if taken := {"before", "floor"} & set(defences):
        raise MedicError(f"{' and '.join(sorted(taken))} are rows of every table: call the defence something else")
    data, tested = as_clean(clean), as_clean(test)
    threats = {name: t if isinstance(t, Threat) else Threat(*t) for name, t in triggers.items()}
    kept = Kept(None if keep is None else Path(keep), _identity(model, data, tested, threats, value_range))

    def judged(name: str, make: Callable[[], nn.Module]) -> Finished:
        started = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - started
        if not isinstance(made, nn.Module) or (made is model and name != "before"):
            raise NoNewNetwork(f"defence {name!r} gave {type(made).__name__}; expected a new network, not the model")
        scores = {
            label: evaluate(made, tested, t.trigger, t.target, sources=t.sources, value_range=value_range)
            for label, t in threats.items()
        }
        return Finished(seconds, scores)

    def rows_of(name: str, runs: Sequence[Finished]) -> list[Entry]:
        seconds = sum(run.seconds for run in runs) / len(runs)
        return [Entry(name, label, tuple(run.scores[label] for run in runs), seconds) for label in threats]

    rows = rows_of("before", [Finished(0.0, judged("before", lambda: model).scores)])
    notes = []
    with Bar(1 + len(defences) * len(seeds), "removals", shown=progress) as bar:
        bar.update(0, "floor")
        told, settings, train = _floor(floor, model, data)
        rows += rows_of("floor", [kept.run("floor", settings, 0, lambda: judged("floor", train))])
        for i, (name, defence) in enumerate(defences.items()):
            runs = []
            try:
                for k, seed in enumerate(seeds):
                    bar.update(1 + i * len(seeds) + k, name)
                    given = {"seed": seed} if _takes_seed(defence) else {}
                    make = partial(defence, model, data, **given)
                    runs.append(kept.run(name, settings_of(defence), seed, partial(judged, name, make)))
            except NoNewNetwork:
                raise
            except MedicError as error:
                notes.append(f"{name} cannot be used here: {error}")
                continue
            rows += rows_of(name, runs)
    return Table(type(model).__name__, len(data), tuple(seeds), tuple(rows), told, tuple(notes))


def _floor(
    floor: nn.Module | Callable[..., nn.Module] | None, model: nn.Module, data: Dataset
) -> tuple[str, str, Callable[[], nn.Module]]:
    """A network without poison: what to call it, what tells it from others, and how to get it."""
    if isinstance(floor, nn.Module):
        return "a network given as clean", fingerprint(floor.state_dict()), lambda: floor
    trained = floor or Scratch()

    def train() -> nn.Module:
        try:
            return trained(model, data)
        except MedicError as error:
            raise MedicError(f"no floor: {error}; or pass floor=, a network trained without poison") from error

    return "the same architecture trained from scratch on the clean data", settings_of(trained), train


def _identity(
    model: nn.Module, clean: Dataset, test: Dataset, threats: Mapping[str, Threat], value_range: Range | None
) -> dict[str, str]:
    """What a file of finished runs must agree on."""
    return {
        "model": fingerprint(model.state_dict()),
        "clean data": fingerprint({"x": clean.x, "y": clean.y}),
        "test data": fingerprint({"x": test.x, "y": test.y}),
        "triggers": str([(name, t.target, t.sources) for name, t in threats.items()]),
        "value_range": str(value_range),
    }


def chosen(names: Sequence[str], known: Mapping[str, Callable[..., nn.Module]]) -> dict[str, Callable[..., nn.Module]]:
    """The defences of these names; all of them for none.

    Raises:
        MedicError: an unknown name.
    """
    for name in names:
        if name not in known:
            raise MedicError(f"no defence {name!r}: {did_you_mean(name, known)}")
    return {name: known[name] for name in names or known}


def _takes_seed(defence: Callable[..., nn.Module]) -> bool:
    try:
        return "seed" in inspect.signature(defence).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False
