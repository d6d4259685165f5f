"""What a comparison should have: cloning beside every baseline, fine-tuning at a range of rates."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from layerscope.methods.medic.baselines.attention import NAD
from layerscope.methods.medic.baselines.fresh import Distill, Factory, Medic, Scratch, UniformClone
from layerscope.methods.medic.baselines.pruning import ANP, CLP, FinePrune
from layerscope.methods.medic.baselines.tuning import FST, FTSAM, FineTune
from layerscope.training.augment import Augment


class Defence(Protocol):
    """A removal: gives a new network and leaves the old one alone. A ``seed`` argument is passed if it is taken."""

    def __call__(self, model: nn.Module, clean: Any, /) -> nn.Module:
        """The cleaned network."""
        ...


def standard(
    augment: str | Augment | None = None, *, batch_size: int = 64, factory: Factory | None = None
) -> dict[str, Defence]:
    """Every defence by name, at its published or default settings, none of them chosen by attack success.

    Args:
        augment: random changes in every defence's training.
        batch_size: samples of one step.
        factory: builds the fresh networks; by default they are copies of the model, drawn anew.
    """
    both: Any = {"augment": augment, "batch_size": batch_size}
    fresh: Any = {**both, "factory": factory}
    return {
        "medic": Medic(**fresh),
        "uniform clone": UniformClone(**fresh),
        "scratch": Scratch(**fresh),
        "distill": Distill(**fresh),
        "fine-tune lr=0.01": FineTune(0.01, **both),
        "fine-tune lr=0.03": FineTune(0.03, **both),
        "fine-tune lr=0.1": FineTune(0.1, **both),
        "fine-prune": FinePrune(**both),
        "nad": NAD(**both),
        "anp": ANP(),
        "clp": CLP(),
        "ft-sam": FTSAM(**both),
        "fst": FST(**both),
    }
