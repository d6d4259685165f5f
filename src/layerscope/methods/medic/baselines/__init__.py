"""Other ways to remove a backdoor: callables ``(model, clean_data, seed=0) -> model`` that leave the model alone.

Any function of that form is a defence too; cloning itself is :class:`Medic`. None of them sees a trigger::

    from layerscope.methods.medic import baselines
    tuned = baselines.FineTune(lr=0.03, epochs=1)(model, (x, y))
    fresh = baselines.Distill(epochs=1)(model, (x, y))

``standard()`` gives the ones that a comparison should have, fine-tuning at a range of rates among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.medic.baselines.attention import NAD as NAD
    from layerscope.methods.medic.baselines.fresh import Distill as Distill
    from layerscope.methods.medic.baselines.fresh import Medic as Medic
    from layerscope.methods.medic.baselines.fresh import Scratch as Scratch
    from layerscope.methods.medic.baselines.fresh import UniformClone as UniformClone
    from layerscope.methods.medic.baselines.pruning import ANP as ANP
    from layerscope.methods.medic.baselines.pruning import CLP as CLP
    from layerscope.methods.medic.baselines.pruning import FinePrune as FinePrune
    from layerscope.methods.medic.baselines.standard import Defence as Defence
    from layerscope.methods.medic.baselines.standard import standard as standard
    from layerscope.methods.medic.baselines.tuning import FST as FST
    from layerscope.methods.medic.baselines.tuning import FTSAM as FTSAM
    from layerscope.methods.medic.baselines.tuning import FineTune as FineTune

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "NAD": "attention",
        **dict.fromkeys(("Distill", "Medic", "Scratch", "UniformClone"), "fresh"),
        **dict.fromkeys(("ANP", "CLP", "FinePrune"), "pruning"),
        **dict.fromkeys(("Defence", "standard"), "standard"),
        **dict.fromkeys(("FST", "FTSAM", "FineTune"), "tuning"),
    },
)
