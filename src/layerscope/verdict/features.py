"""The plain numbers that a learned score sees: what a probe, a curvature and a few real steps say of one network.

Keys are those of a study's rows, so that a score that was fitted on trainings reads a live network with the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from layerscope.probe.records import Profile
from layerscope.verdict.types import MicroTrain

if TYPE_CHECKING:
    from layerscope.training.sharpness import Curvature


def features(
    profile: Profile,
    *,
    lr: float | None = None,
    classes: int | None = None,
    curvature: Curvature | None = None,
    micro: MicroTrain | None = None,
) -> dict[str, Any]:
    """Everything by dotted name: ``init.*`` always, ``micro.*`` where real steps were made, and the set-up.

    Args:
        profile: at initialization.
        lr: the learning rate of the training that is foreseen.
        classes: of the data; outputs of the classifier if not given.
        curvature: of the same network.
        micro: real steps of the same network at ``lr``.
    """
    found: dict[str, Any] = {f"init.{k}": v for k, v in init_features(profile).items()}
    if curvature is not None:
        found |= {f"init.{k}": v for k, v in asdict(curvature).items()}
    if micro is not None:
        found |= {f"micro.{k}": v for k, v in micro_features(micro).items()}
    return found | {"lr": lr, "batch_size": profile.batch_size, "classes": classes or outputs(profile)}


def outputs(profile: Profile) -> int | None:
    """Outputs of the classifier."""
    return next((r.shape[-1] for r in profile.records if r.name == profile.classifier and r.shape), None)


def init_features(profile: Profile) -> dict[str, float | None]:
    """The probe's numbers that a score may use, at the last layer and along the depth."""
    maps = [r for r in profile.of("activation", "block") if r.cosine is not None]
    grads = [r.grad_scaled for r in profile.of("conv", "linear") if r.grad_scaled]
    raw = [r.grad_norm for r in profile.of("conv", "linear") if r.grad_norm]
    ms = [r.ms for r in maps if r.ms is not None]
    updates = [r.relative_update for r in profile.records if r.relative_update is not None]
    tokens = [r.cosine_token for r in maps if r.cosine_token is not None]
    return {
        "probe_loss": profile.loss,
        "cosine": profile.readout_cosine_unpooled,
        "cosine_pooled": profile.readout_cosine,
        "cosine_token": tokens[-1] if tokens else None,
        "effective_rank": profile.readout_effective_rank,
        "spread": profile.readout_spread,
        "batch_noise": profile.batch_noise,
        "ms_last": ms[-1] if ms else None,
        "ms_max": max(ms) if ms else None,
        "grad_ratio": grads[0] / grads[-1] if len(grads) > 1 else None,
        "grad_rate": (grads[0] / grads[-1]) ** (1.0 / (len(grads) - 1)) if len(grads) > 1 else None,
        "grad_ratio_raw": raw[0] / raw[-1] if len(raw) > 1 else None,
        "update_max": max(updates, default=None),
        "dead_share": max((r.dead_share for r in profile.records if r.dead_share is not None), default=None),
        "nonfinite": max((r.nonfinite_share for r in profile.records), default=0.0),
    }


def micro_features(micro: MicroTrain) -> dict[str, Any]:
    """What a few real steps say: the loss at their end, how much of it is gone, its worst, and all of them."""
    losses = micro.losses
    tail = losses[-5:]
    return {
        "loss": sum(tail) / len(tail),
        "drop": micro.drop,
        "worst": max(losses),
        "diverged": float(micro.diverged),
        "losses": [short(v) for v in losses],
    }


def short(value: float | None) -> float | None:
    """A number to three digits."""
    return None if value is None else float(f"{value:.3g}")


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A feature as a number; text such as ``nan`` and ``inf`` too. None for anything else."""
    value = row.get(name)
    if isinstance(value, bool | int | float):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None
