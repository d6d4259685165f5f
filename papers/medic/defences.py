"""Every defence of the MEDIC study by name: the main table's, and the ablations'.

Fresh networks all get the same number of steps; none of the settings was chosen by attack success.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bed import NETS, augment
from torch import Tensor, nn

from layerscope import nets, probe
from layerscope.data import Dataset
from layerscope.methods import medic
from layerscope.methods.medic import baselines
from layerscope.methods.medic.taps import suggest_taps

Defence = Callable[[nn.Module, Dataset, int], tuple[nn.Module, medic.Report | None]]

BATCH = 64
#: Epochs for 3,000 clean samples. With fewer samples there are more of them, so that the steps stay the same.
EPOCHS, TUNING_EPOCHS, FULL = 45, 20, 3000
WEIGHT = 3.0
ANP_ITERATIONS = 300
#: The seed of a defence minus that of the poisoned network: no defence may start where that one started.
APART = 1000
OFFICIAL: dict[str, Any] = {"taps": "conv+norm", "clone_weight": 10.0, "epochs": 60, "impact_reduction": "mean"}


def scaled(epochs: int, clean: Dataset) -> int:
    """Epochs on this many clean samples that make as many steps as ``epochs`` on 3,000."""
    return max(1, round(epochs * (FULL // BATCH) / (len(clean) // BATCH)))


def cloning(model: nn.Module, clean: Dataset, seed: int, **settings: Any) -> tuple[nn.Module, medic.Report]:
    """A clone; ``matched=True``: at the total weight, over neurons and taps, that the default has on this network."""
    matched = settings.pop("matched", False)
    settings = {"augment": augment, "batch_size": BATCH, "clone_weight": WEIGHT, "epochs": EPOCHS, **settings}
    settings["epochs"] = scaled(settings["epochs"], clean)

    def total(**changed: Any) -> float:
        first = clean.take(slice(0, 2 * BATCH))
        made = medic.clone(model, first, epochs=1, seed=seed, batch_size=BATCH, progress=False, **changed)
        return sum(tap.total_weight for tap in made.report.taps)

    if matched:
        own = {k: v for k, v in settings.items() if k in ("taps", "importance", "sharpness", "impact_reduction")}
        settings["clone_weight"] *= total() / total(**own)
    made = medic.clone(model, clean, seed=seed, progress=False, **settings)
    return made.model, made.report


def other(defence: Any, model: nn.Module, clean: Dataset, seed: int) -> tuple[nn.Module, None]:
    """A defence of the package, its epochs scaled to the clean data."""
    own = {name: getattr(defence, name) for name in ("epochs", "teacher_epochs") if hasattr(defence, name)}
    defence = replace(defence, **{name: scaled(epochs, clean) for name, epochs in own.items()})
    return defence(model, clean, seed=seed), None


def main_table() -> dict[str, Defence]:
    """Cloning at its defaults, and every baseline."""
    settings: dict[str, Any] = {"augment": augment, "batch_size": BATCH}
    tuning = {**settings, "epochs": TUNING_EPOCHS}
    plain = {
        "distill": baselines.Distill(epochs=EPOCHS, **settings),
        "scratch": baselines.Scratch(epochs=EPOCHS, **settings),
        "fst": baselines.FST(**settings),
        "fine-tune lr=0.03": baselines.FineTune(0.03, **tuning),
        "fine-tune lr=0.1": baselines.FineTune(0.1, **tuning),
        "fine-tune lr=0.01": baselines.FineTune(0.01, **tuning),
        "ft-sam": baselines.FTSAM(**tuning),
        "clp": baselines.CLP(),
        "fine-prune": baselines.FinePrune(**tuning),
        "nad": baselines.NAD(teacher_epochs=TUNING_EPOCHS // 2, **tuning),
        "anp": baselines.ANP(iterations=ANP_ITERATIONS),
    }
    return {
        "medic": cloning,
        **{name: partial(other, plain.pop(name)) for name in ("distill", "scratch", "fst")},
        **{name: partial(other, defence) for name, defence in plain.items()},
        "uniform clone": partial(cloning, importance="uniform", matched=True),
    }


def scale_free(z: Tensor, g: Tensor | None, sharpness: float) -> Tensor:
    """The signed importance with the impact term switched on: g in units of its own spread in every sample."""
    assert g is not None
    flat_z, flat_g = z.flatten(1), g.flatten(1)
    flat_g = flat_g / flat_g.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
    both = (sharpness * flat_z).log_softmax(1) + (sharpness * flat_g).log_softmax(1)
    return (0.5 * both).exp().view_as(z)


def by_rank(model: nn.Module, clean: Dataset) -> list[str]:
    """The half of the norm taps after whose activation the probe finds the lowest effective rank.

    Samples of K classes that a layer tells apart, and nothing else, have rank K - 1; raw images have many more.
    """
    profile = probe.profile(model, (clean.x[:128], clean.y[:128]), level="standard")
    ranks = {record.name: record.effective_rank_centred for record in profile.records}
    taps = [tap for tap in suggest_taps(model, "conv+norm", clean.x[:2]) if ranks.get(str(tap.act)) is not None]
    return [tap.name for tap in sorted(taps, key=lambda tap: ranks[str(tap.act)])[: (len(taps) + 1) // 2]]


def last_third(model: nn.Module, clean: Dataset) -> list[str]:
    """The last third of all norms and convolutions: the default before this one."""
    taps = suggest_taps(model, "conv+norm", clean.x[:2])
    return [tap.name for tap in taps[-max(1, len(taps) // 3) :]]


Chooser = Callable[[nn.Module, Dataset], Sequence[str]]


def with_taps(choose: Chooser, model: nn.Module, clean: Dataset, seed: int) -> Any:
    """A clone at taps of a choice, at the total weight of the default."""
    return cloning(model, clean, seed, taps=list(choose(model, clean)), matched=True)


def from_the_teachers_start(model: nn.Module, clean: Dataset, seed: int, **settings: Any) -> Any:
    """The same-initialization trap: the clone starts where the poisoned residual net once started."""
    spec, norm = NETS["resnet"]
    shape, classes = clean.in_shape, clean.classes

    def start() -> nn.Module:
        return nets.build(spec, norm, in_shape=shape, classes=classes, seed=seed - APART)

    made, report = cloning(model, clean, seed, factory=start, **settings)
    if not any("same random weights" in warning for warning in report.warnings):
        raise RuntimeError("this clone was to start where the poisoned network started, and does not")
    return made, report


def ablations() -> dict[str, Defence]:
    """One thing changed at a time; everything but ``weight`` and ``epochs`` at the default's total weight.

    The other two fresh networks with more steps too: what more steps do is not cloning's alone.
    """
    changed: dict[str, Defence] = {}
    longer: dict[str, Any] = {"augment": augment, "batch_size": BATCH, "epochs": 60}
    for weight in (0.3, 1.0, 10.0, 30.0):
        changed[f"medic weight={weight:g}"] = partial(cloning, clone_weight=weight)
    for epochs in (30, 60):
        changed[f"medic epochs={epochs}"] = partial(cloning, epochs=epochs)
    changed["distill epochs=60"] = partial(other, baselines.Distill(**longer))
    changed["scratch epochs=60"] = partial(other, baselines.Scratch(**longer))
    for sharpness in (1.0, 20.0):
        changed[f"medic sharpness={sharpness:g}"] = partial(cloning, sharpness=sharpness, matched=True)
    for kind in ("activation", "impact", "magnitude"):
        changed[f"medic importance={kind}"] = partial(cloning, importance=kind, matched=True)
    changed["medic impact on"] = partial(cloning, importance=scale_free, matched=True)
    changed["medic impact mean"] = partial(cloning, impact_reduction="mean")
    for taps in ("conv+norm", "conv", "norm"):
        changed[f"medic taps={taps}"] = partial(cloning, taps=taps, matched=True)
    changed["medic last third"] = partial(with_taps, last_third)
    changed["medic taps by rank"] = partial(with_taps, by_rank)
    changed["medic no augmentation"] = partial(cloning, augment=None)
    changed["medic teacher's start"] = from_the_teachers_start
    changed["medic official"] = partial(cloning, **OFFICIAL)
    changed["medic official, teacher's start"] = partial(from_the_teachers_start, **OFFICIAL)
    return changed
