"""What cloning asks of its inputs, checked before the first step; what is odd but not wrong becomes a warning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from layerscope import training
from layerscope.copying import duplicate
from layerscope.data import Dataset, as_dataset
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.fresh import shared_past
from layerscope.methods.medic.report import TapReport

#: A criterion whose effective neuron count is above this share of D at every tap does nothing.
INERT = 0.99


def check_settings(clone_weight: float, sharpness: float, epochs: int, batch_size: int, reduction: str) -> None:
    """Raise a MedicError for numbers that mean nothing (also NaN)."""
    if not (clone_weight >= 0 and sharpness >= 0):
        raise MedicError(f"clone_weight and sharpness must not be negative; got {clone_weight} and {sharpness}")
    if epochs < 1 or batch_size < 2:
        raise MedicError(f"epochs must be at least 1 and batch_size at least 2; got {epochs} and {batch_size}")
    if reduction not in ("sample", "mean"):
        raise MedicError(f"impact_reduction is 'sample' or 'mean'; got {reduction!r}")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside a DataParallel, DistributedDataParallel or torch.compile wrapper."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def private_copy(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A copy to work with: evaluation mode, no gradients, on ``device``, float32 where the model has fewer bits.

    Raises:
        MedicError: no torch network, or one that cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise MedicError(f"the model is {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise MedicError("the model is a compiled TorchScript: load its weights into the Python network it came from")
    own = duplicate(unwrapped(model), MedicError).eval().requires_grad_(False)
    if low_precision(own):
        # Adam's second moments and most updates vanish in 16 bits
        own = own.float()
    return own if device is None else own.to(device)


def low_precision(model: nn.Module) -> bool:
    """Whether any parameter has 16 bits or fewer."""
    return any(p.is_floating_point() and p.element_size() < 4 for p in model.parameters())


def as_clean(data: Any) -> Dataset:
    """Clean data as a Dataset in memory: a Dataset, ``(x, y)``, a torch data set or a DataLoader.

    Raises:
        MedicError: there is nothing in it.
        DataError: what is in it is no labelled data.
    """
    if isinstance(data, TorchDataset):
        data = DataLoader(data, batch_size=256)
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor) and len(data[0]) == 0:
        raise MedicError("there is no clean sample; cloning needs some, 5 % of a training set is a good start")
    return as_dataset(data)


def check_data(teacher: nn.Module, clean: Dataset, batch_size: int) -> tuple[Tensor, list[str]]:
    """The teacher's logits on all clean data, and what is odd about the data.

    Raises:
        MedicError: logits that are not [B, K] or not finite, labels beyond K, fewer than two samples.
    """
    if len(clean) < 2:
        raise MedicError("one clean sample is not enough: batch statistics and spreads need at least two")
    logits = training.predict(teacher, clean.x)
    if logits.ndim != 2:
        raise MedicError(f"the model returns {tuple(logits.shape)} for {len(clean)} samples; expected logits [B, K]")
    if bad := int((~torch.isfinite(logits)).any(1).sum()):
        raise MedicError(f"the model's logits are not finite on {bad} of {len(clean)} clean samples")
    if (top := int(clean.y.max())) >= logits.shape[1]:
        raise MedicError(f"labels run to {top}, but the model has {logits.shape[1]} outputs")
    warnings = []
    absent = sorted(set(range(logits.shape[1])) - set(clean.y.tolist()))
    if absent:
        warnings.append(f"no clean sample of classes {', '.join(map(str, absent))}: the clone cannot learn them")
    if rest := len(clean) % min(batch_size, len(clean)):
        warnings.append(
            f"{rest} of {len(clean)} samples, others in every epoch, are left out of it: they do not fill a batch"
        )
    return logits, warnings


def check_past(student: nn.Module, teacher: nn.Module) -> list[str]:
    """A warning if the fresh network starts where the teacher once started.

    Raises:
        MedicError: the factory gives the teacher itself, or one that shares its weights.
    """
    theirs = {p.data_ptr() for p in teacher.parameters()}
    if any(p.data_ptr() in theirs for p in student.parameters()):
        raise MedicError("the factory returns a network that shares weights with the model; it must build a new one")
    shared = shared_past(student, teacher)
    if not shared:
        return []
    worst = max(shared, key=lambda name: shared[name])
    return [
        f"the fresh network's {worst} has cosine {shared[worst]:.2f} with the teacher's ({len(shared)} tensors above "
        "0.2): both seem to start from the same random weights, and such a clone finds its way back to the backdoor; "
        "use another seed, or no factory"
    ]


def inert(taps: Sequence[TapReport]) -> list[str]:
    """A warning if a criterion spreads its weight evenly at every tap, so that it does nothing."""
    found = []
    for name, instead in (("impact", "activation"), ("activation", "impact")):
        counts = [(getattr(tap, f"effective_{name}"), tap.neurons) for tap in taps]
        if counts and all(count is not None and count > INERT * size for count, size in counts):
            found.append(
                f"the {name} criterion is inert: exp(entropy) / D > {INERT} at every tap; importance={instead!r} does "
                "the same"
            )
    return found
