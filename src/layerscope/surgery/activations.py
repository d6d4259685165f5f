"""Which modules are activations, and how many a network has: surgery must not change that number."""

from __future__ import annotations

from torch import nn

_HOMES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
#: Modules of our own norms that stand in the activation slot and hold no other activation.
_OWN = frozenset(
    {
        "layerscope.norms.frn.ThresholdedLinearUnit",
        "layerscope.norms.evonorm.EvoNormB0",
        "layerscope.norms.evonorm.EvoNormS0",
    }
)
_NOT = frozenset({"MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"})


def is_activation(module: nn.Module) -> bool:
    """Whether this is an activation: torch's, timm's, a norm of ours that owns one, or marked ``is_activation = True``.

    The mark is a class attribute: an activation class of your own that carries it is counted, and can be replaced where
    a norm choice brings its own activation.
    """
    cls = type(module)
    if f"{cls.__module__}.{cls.__qualname__}" in _OWN or getattr(cls, "is_activation", False) is True:
        return True
    return cls.__module__ in _HOMES and cls.__name__ not in _NOT


def count_activations(model: nn.Module) -> int:
    """Number of places in the module tree at which an activation stands; a shared module counts at each place.

    >>> act = nn.ReLU()
    >>> count_activations(nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act))
    2
    """
    return sum(is_activation(m) for _, m in model.named_modules(remove_duplicate=False))
