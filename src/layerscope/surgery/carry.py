"""What a new norm takes over from the old module: affine values, running statistics, dtype, device, flags."""

from __future__ import annotations

import torch
from torch import nn

from layerscope import norms
from layerscope.surgery.adapters import Known

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def carry(new: nn.Module, old: nn.Module, known: Known, like: torch.Tensor | None, keep_affine: bool) -> None:
    """Make ``new`` look like ``old``, in place, wherever both have the same thing.

    Shift and running statistics are copied where the numbers of values agree. The scale is multiplied into the initial
    one of ``new`` (which is 1 unless the choice says otherwise: ``batch:gain=2``). A mixture norm takes the whole state
    of a trained batch norm over, so that the network's function in evaluation mode stays. dtype and device follow the
    old module (or ``like``, any tensor of the network, where the old one holds none); the train flag and
    ``requires_grad`` are carried, so that what was frozen stays frozen.
    """
    reference = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), like)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    new.train(old.training)
    held = [t for t in (known.weight, known.bias) if t is not None]
    if held and not any(t.requires_grad for t in held):
        new.requires_grad_(False)
    for name in ("weight", "bias"):
        target, value = getattr(new, name, None), getattr(known, name)
        if not isinstance(target, torch.Tensor) or value is None:
            continue
        target.requires_grad_(value.requires_grad)
        if keep_affine and target.numel() == value.numel():
            with torch.no_grad():
                carried = value.detach().to(target).reshape(target.shape)
                target.copy_(target * carried if name == "weight" else carried)
    if keep_affine and isinstance(new, norms.MixtureNorm) and norms.MixtureNorm.has_learned(old):
        new.adopt(old)
        return
    for name in _RUNNING:
        target, value = getattr(new, name, None), getattr(old, name, None)
        if isinstance(target, torch.Tensor) and isinstance(value, torch.Tensor) and target.shape == value.shape:
            with torch.no_grad():
                target.copy_(value)


def starts_silent(known: Known) -> bool:
    """Whether the norm's scale is all zero: a residual branch that says nothing at initialization."""
    weight = known.weight
    return weight is not None and weight.numel() > 0 and not weight.is_meta and not bool(weight.any())


def has_trained_affine(known: Known) -> bool:
    """Whether scale and shift are anything but one and zero, so that dropping them loses something."""
    scale = known.weight is not None and not known.weight.is_meta and not bool((known.weight == 1).all())
    shift = known.bias is not None and not known.bias.is_meta and bool(known.bias.any())
    return scale or shift
