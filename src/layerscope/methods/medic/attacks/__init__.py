"""Published backdoor triggers, plain and seeded, to measure how well a removal works on networks trained here.

Every trigger is a function of images in [0, 1] and their indices, so that the same image always gets the same trigger::

    from layerscope.methods.medic import attacks
    poisoned = attacks.Poisoned((x, y), attacks.Blend(0.2), target=0, rate=0.1)
    print(len(poisoned.poison_idx), poisoned[int(poisoned.poison_idx[0])][1])
    attacks.train_poisoned(model, poisoned, epochs=1, batch_size=32, lr=0.05)

The clean-label attack is ``mode="clean"`` with ``adversary=attacks.PGD()``; the composite one is ``train_composite``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.medic.attacks.composite import Composite as Composite
    from layerscope.methods.medic.attacks.composite import mix_halves as mix_halves
    from layerscope.methods.medic.attacks.composite import train_composite as train_composite
    from layerscope.methods.medic.attacks.poison import Poisoned as Poisoned
    from layerscope.methods.medic.attacks.training import PGD as PGD
    from layerscope.methods.medic.attacks.training import train_poisoned as train_poisoned
    from layerscope.methods.medic.attacks.triggers import BadNet as BadNet
    from layerscope.methods.medic.attacks.triggers import Blend as Blend
    from layerscope.methods.medic.attacks.triggers import Filter as Filter
    from layerscope.methods.medic.attacks.triggers import Polygon as Polygon
    from layerscope.methods.medic.attacks.triggers import Reflection as Reflection
    from layerscope.methods.medic.attacks.triggers import Sinusoid as Sinusoid
    from layerscope.methods.medic.attacks.triggers import Trigger as Trigger
    from layerscope.methods.medic.attacks.triggers import Warp as Warp

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        **dict.fromkeys(
            ("BadNet", "Blend", "Filter", "Polygon", "Reflection", "Sinusoid", "Trigger", "Warp"), "triggers"
        ),
        "Poisoned": "poison",
        **dict.fromkeys(("PGD", "train_poisoned"), "training"),
        **dict.fromkeys(("Composite", "mix_halves", "train_composite"), "composite"),
    },
)
