"""Several defences on one network under several triggers, read against a network without poison."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from layerscope.methods.medic.records import Entry, Scores, Table
from layerscope.methods.medic.scores import evaluate


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

    A defence that says with a MedicError that it cannot work on this network becomes a note in the table, not a row.

    Raises:
        MedicError: no trigger, no seed, a name that is taken, a defence that gives no new network, or a floor that
            cannot be trained.
    """
    if not triggers or not seeds:
        raise MedicError("compare needs at least one trigger and one seed")
    if taken := {"before", "floor"} & set(defences):
        raise MedicError(f"{' and '.join(sorted(taken))} are rows of every table: call the defence something else")
    data, tested = as_clean(clean), as_clean(test)
    threats = {name: t if isinstance(t, Threat) else Threat(*t) for name, t in triggers.items()}

    def entries(name: str, networks: Sequence[nn.Module], seconds: float) -> list[Entry]:
        return [
            Entry(name, label, tuple(scored(n, threat) for n in networks), seconds) for label, threat in threats.items()
        ]

    def scored(network: nn.Module, threat: Threat) -> Scores:
        return evaluate(network, tested, threat.trigger, threat.target, sources=threat.sources, value_range=value_range)

    rows = entries("before", [model], 0.0)
    notes = []
    with Bar(1 + len(defences) * len(seeds), "removals", shown=progress) as bar:
        bar.update(0, "floor")
        clean_network, told = _floor(floor, model, data)
        rows += entries("floor", [clean_network], 0.0)
        for i, (name, defence) in enumerate(defences.items()):
            started, made = time.perf_counter(), []
            try:
                for k, seed in enumerate(seeds):
                    bar.update(1 + i * len(seeds) + k, name)
                    made.append(defence(model, data, **({"seed": seed} if _takes_seed(defence) else {})))
            except MedicError as error:
                notes.append(f"{name} cannot be used here: {error}")
                continue
            seconds = time.perf_counter() - started
            for cleaned in made:
                if not isinstance(cleaned, nn.Module) or cleaned is model:
                    raise MedicError(
                        f"defence {name!r} gave {type(cleaned).__name__}; expected a new network, not the model"
                    )
            rows += entries(name, made, seconds / len(seeds))
    return Table(type(model).__name__, len(data), tuple(seeds), tuple(rows), told, tuple(notes))


def _floor(
    floor: nn.Module | Callable[..., nn.Module] | None, model: nn.Module, data: Dataset
) -> tuple[nn.Module, str]:
    """A network without poison, and what to call it."""
    if isinstance(floor, nn.Module):
        return floor, "a network given as clean"
    try:
        return (floor or Scratch())(model, data), "the same architecture trained from scratch on the clean data"
    except MedicError as error:
        raise MedicError(f"no floor: {error}; or pass floor=, a network trained without poison") from error


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
