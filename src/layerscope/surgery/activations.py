"""Which modules are activations, and how many a network has: surgery must not change that number."""

from __future__ import annotations

from torch import nn

_HOMES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_NOT = frozenset({"MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"})


def is_activation(module: nn.Module) -> bool:
    """Whether this is an elementwise activation: torch's, timm's, or a class marked ``is_activation = True``.

    The modules that a norm choice puts into the activation slot (a thresholded linear unit, an EvoNorm) carry the mark.
    """
    cls = type(module)
    return (cls.__module__ in _HOMES and cls.__name__ not in _NOT) or getattr(cls, "is_activation", False) is True


def count_activations(model: nn.Module) -> int:
    """Number of places in the module tree at which an activation stands; a shared module counts at each place.

    >>> act = nn.ReLU()
    >>> count_activations(nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act))
    2
    """
    return sum(is_activation(m) for _, m in model.named_modules(remove_duplicate=False))
