"""Cloning: a fresh network learns the labels and, weighted by importance, the teacher's activations on clean images.

Source: Xu et al., "MEDIC", CVPR 2023. The defaults differ from the released ones (``preset="official"``): the later
activations instead of every norm and convolution, clone weight 3 instead of 10 and 45 epochs of 3,000 samples instead
of 60, because what brings a backdoor back is copied early or linear features and steps; and initial weights from a
stream of their own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from layerscope import training
from layerscope.errors import did_you_mean
from layerscope.methods.medic import checks
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.fresh import fresh_like
from layerscope.methods.medic.keeping import Course, OnEpoch, fingerprint
from layerscope.methods.medic.report import Report
from layerscope.methods.medic.step import CloneStep, Teacher, plain_step
from layerscope.methods.medic.taps import Tap, Taps, find_taps, tap_statistics, tapped
from layerscope.methods.medic.weights import Importance, Kind
from layerscope.training.augment import Augment
from layerscope.training.settings import device_of

Reduction = Literal["sample", "mean"]

#: Of a fresh network by default: 45 epochs of 3,000 samples in batches of 64, where the default was measured.
STEPS = 2070
#: Where that would be fewer.
LEAST_EPOCHS = 10
_OURS: Mapping[str, Any] = {"clone_weight": 3.0, "epochs": None, "impact_reduction": "sample", "taps": "late"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "official": {"clone_weight": 10.0, "epochs": 60, "impact_reduction": "mean", "taps": "conv+norm"},
}


@dataclass(frozen=True)
class Clone:
    """A cleaned network and how it was made."""

    model: nn.Module = field(repr=False)
    """In evaluation mode, detached from everything."""
    report: Report


def clone(
    model: nn.Module,
    data: Any,
    *,
    factory: Callable[[], nn.Module] | None = None,
    taps: Taps = "late",
    importance: Kind | Importance = "signed",
    impact_reduction: Reduction = "sample",
    clone_weight: float = 3.0,
    sharpness: float = 5.0,
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-2,
    weight_decay: float = 1e-4,
    preset: str | None = None,
    augment: str | Augment | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
) -> Clone:
    """Copy what a suspicious classifier does on clean inputs into a network that never saw its weights.

    The caller's model is not touched. There is no early stopping on an attack's success and no argument that takes
    triggered data: whoever defends has neither.

    Args:
        model: the suspicious classifier [B, C, H, W] -> [B, K].
        data: clean labelled samples: a Dataset, ``(x, y)``, a torch data set or a DataLoader. At least 5 % of the
            training set is recommended. A loader is read once: put random changes into ``augment``.
        factory: builds the fresh network; by default a re-initialized deep copy.
        taps: ``late`` (the later half of the activations that follow a norm; see :func:`suggest_taps`), ``conv``,
            ``norm``, ``conv+norm`` (as released), ``all``, module names, or a function of the model. Early layers see
            the trigger too, and a convolution's output holds what the activation after it hides.
        importance: ``signed``, ``magnitude``, ``activation``, ``impact``, ``uniform``, or a function (z, g, tau) -> w.
        impact_reduction: ``sample`` (each sample's own loss gradient) or ``mean`` (divided by the batch size, as
            released; the criterion is then nearly inert).
        clone_weight: lambda of the clone loss.
        sharpness: tau, the inverse temperature of the two softmaxes.
        epochs: passes over the data; by default as many as make 2,070 steps (45 for 3,000 samples), at least 10.
        batch_size: samples of one step.
        lr: of Adam, cosine annealed.
        weight_decay: of Adam.
        preset: ``official`` for the released settings: taps ``conv+norm``, clone weight 10, 60 epochs, impact averaged
            over the batch.
        augment: as for :func:`layerscope.training.fit`; both networks see the same augmented batch.
        seed: of the fresh weights and the data order.
        device: where to compute; by default where the model is.
        progress: show a bar; by default where stderr is a terminal.
        on_epoch: called with (epochs done, student, numbers of the last step), for monitoring.
        checkpoint: file to keep the run in. Ctrl-C then finishes the step, writes it and stops.
        resume: go on from ``checkpoint`` if it exists; the clone is the same to the bit as without a break.

    Returns:
        The clone and its report; read ``report.warnings``.

    Raises:
        MedicError: data, taps, networks or settings that cannot be used, or a loss that is not finite.
        DataError: samples or labels of the wrong shape or type.
        TrainingError: ``checkpoint`` is damaged, holds another run, or cannot be written.
    """
    started = time.perf_counter()
    chosen = _chosen(preset, clone_weight=clone_weight, epochs=epochs, impact_reduction=impact_reduction, taps=taps)
    clone_weight, given, impact_reduction, taps = (chosen[k] for k in _OURS)
    checks.check_settings(clone_weight, sharpness, 1 if given is None else given, batch_size, impact_reduction)
    clean = checks.as_clean(data)
    epochs = chosen["epochs"] = default_epochs(len(clean), batch_size) if given is None else given
    teacher = checks.private_copy(model)
    at = device_of(teacher, device)
    teacher = teacher.to(at)
    logits, warnings = checks.check_data(teacher, clean, batch_size)
    student = (factory() if factory else fresh_like(teacher, seed)).to(at)
    if checks.low_precision(student):
        student = student.float()
    if checks.low_precision(checks.unwrapped(model)):
        warnings.append("the model has 16-bit weights; the clone was trained in float32 and is in float32")
    warnings += checks.check_past(student, teacher)
    settings = {
        "importance": importance if isinstance(importance, str) else getattr(importance, "__name__", "function"),
        **chosen, "sharpness": sharpness, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "taps": taps if isinstance(taps, str) else "named",
        "augment": getattr(augment, "__name__", augment),
        "preset": preset,
    }  # fmt: skip
    told = {name: str(value) for name, value in settings.items()}
    before = time.perf_counter() - started

    def fit(step: Any, places: Sequence[Tap] = ()) -> training.History:
        watching = []
        if on_epoch is not None or checkpoint is not None:
            of = {**told, "taps": ", ".join(tap.name for tap in places), "model": fingerprint(teacher.state_dict())}
            kept = step if isinstance(step, CloneStep) else None
            watching = [Course(of, kept, on_epoch, None if checkpoint is None else Path(checkpoint))]
        return training.fit(
            student, clean, epochs=epochs, batch_size=min(batch_size, len(clean)), lr=lr, schedule="cosine",
            optimizer=lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, weight_decay=weight_decay),
            step_fn=step, augment=augment, seed=seed, device=at, progress=progress, callbacks=watching,
            checkpoint=checkpoint, resume=resume,
        )  # fmt: skip

    if clone_weight:
        places, left_out = find_taps(teacher, taps, _like(teacher, clean.x[:2].to(at)))
        if left_out:
            warnings.append(f"not compared, because they are called several times in one pass: {', '.join(left_out)}")
        statistics = tap_statistics(teacher, _like(teacher, clean.x.to(at)), places)
        with ExitStack() as stack:
            theirs, ours = (stack.enter_context(tapped(network, places)) for network in (teacher, student))
            lesson = Teacher(
                teacher, places, theirs, statistics, importance,
                per_sample=impact_reduction == "sample", sharpness=sharpness,
            )  # fmt: skip
            step = CloneStep(lesson, ours, clone_weight)
            history = fit(step, places)
    else:
        history = fit(plain_step)
    if history.diverged:
        raise MedicError(
            f"the clone diverged at step {history.diverged_at}: lower lr={lr} or clone_weight={clone_weight}"
        )
    per_epoch = history.steps // epochs
    means = {name: _by_epoch(values, per_epoch) for name, values in history.metrics.items()}
    found = lesson.reports(step.by_tap(per_epoch)) if clone_weight else ()
    counts = Counter(clean.y.tolist())
    report = Report(
        settings=tuple(told.items()),
        seed=seed,
        samples=len(clean),
        samples_per_class=tuple(counts.get(k, 0) for k in range(logits.shape[1])),
        teacher_accuracy=float((logits.argmax(1) == clean.y.cpu()).double().mean()),
        taps=found,
        effective_clone_weight=clone_weight * (sum(t.total_weight for t in found) / len(found) if found else 0.0),
        steps=history.steps,
        cross_entropies=means["cross_entropy"],
        clone_losses=means.get("clone", ()),
        accuracies=means["accuracy"],
        seconds=before + history.seconds,
        warnings=(*warnings, *checks.inert(found)),
    )
    return Clone(student.eval(), report)


def default_epochs(samples: int, batch_size: int) -> int:
    """How long a fresh network is trained on so many samples if nobody says: :data:`STEPS`, but enough epochs."""
    return max(LEAST_EPOCHS, round(STEPS / max(1, samples // batch_size)))


def _chosen(preset: str | None, **given: Any) -> dict[str, Any]:
    """The three settings that a preset decides.

    Raises:
        MedicError: no such preset, or a preset and one of its settings at once.
    """
    if preset is None:
        return given
    if preset not in PRESETS:
        raise MedicError(f"no preset {preset!r}: {did_you_mean(preset, PRESETS)}")
    if both := [name for name, value in given.items() if value not in (_OURS[name], PRESETS[preset][name])]:
        raise MedicError(f"preset={preset!r} decides {', '.join(both)}: give one or the other")
    return dict(PRESETS[preset])


def _like(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The samples in the network's floating type."""
    first = next((p for p in network.parameters() if p.is_floating_point()), None)
    return x if first is None else x.to(first.dtype)


def _by_epoch(values: Sequence[float], per_epoch: int) -> tuple[float, ...]:
    parts = [values[i : i + per_epoch] for i in range(0, len(values), per_epoch)]
    return tuple(sum(p) / len(p) for p in parts)
