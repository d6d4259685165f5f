"""A network of the same structure with fresh random weights, drawn from a stream that the teacher cannot have used.

Why it matters: a clone that starts from the weights that the teacher once started from finds its way back to the
teacher, backdoor included. That is what happens when one script seeds both trainings alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerscope.copying import duplicate
from layerscope.methods.medic.errors import MedicError
from layerscope.training.seeds import derive

#: Cosine between a fresh and a teacher tensor above which they share a past; independent large ones stay below 0.1.
SUSPICIOUS_COSINE = 0.2
#: Smaller tensors are similar by chance.
SMALLEST_TENSOR = 1000


def fresh_like(model: nn.Module, seed: int) -> nn.Module:
    """A deep copy with every parameter drawn anew and every running statistic back at its start.

    The seed is hashed with a constant of this function, so that ``fresh_like(model, s)`` differs from a model built
    after ``torch.manual_seed(s)``. The global generators stay as they are. Drawn on the CPU, so that the weights are
    the same on every device; parameters end where the model's are, and all of them are trainable.

    Args:
        model: any network whose parameter-owning modules have ``reset_parameters``.
        seed: of the weights.

    Raises:
        MedicError: a module that owns parameters and cannot be drawn anew; pass ``factory=`` instead.
    """
    fresh = duplicate(model, MedicError)
    at = next((p.device for p in fresh.parameters()), torch.device("cpu"))
    fresh.to("cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(derive(seed, "layerscope.medic.fresh"))
        for path, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            old = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
            if callable(reset):
                reset()
            kept = [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1 and torch.equal(p, old[n])]
            if (old and not callable(reset)) or kept:
                what = f"leaves {', '.join(kept)} as it was" if callable(reset) else "has no reset_parameters"
                raise MedicError(
                    f"{path or type(fresh).__name__} ({type(module).__name__}) owns parameters and {what}, so it "
                    "cannot be drawn anew: pass factory=, a function that builds the network"
                )
    return fresh.to(at).requires_grad_(True)


def shared_past(fresh: nn.Module, teacher: nn.Module) -> dict[str, float]:
    """Weight tensors of 1,000 entries or more whose cosine with the teacher's says that they are not independent of it.

    Vectors do not count: the gains of two norms are alike because both are positive.

    Returns:
        parameter name -> cosine, for cosines above 0.2; empty for an independent initialization.
    """
    ours = dict(fresh.named_parameters())
    found = {}
    for name, theirs in teacher.named_parameters():
        mine = ours.get(name)
        if mine is None or mine.shape != theirs.shape or mine.numel() < SMALLEST_TENSOR or mine.ndim < 2:
            continue
        cosine = _cosine(mine.detach(), theirs.detach())
        if cosine > SUSPICIOUS_COSINE:
            found[name] = cosine
    return found


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double().to(a.device), dim=0))
