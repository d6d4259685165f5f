"""Adaptive-2, the defence's own stress test: a patch optimized against cloning. For evaluation only.

The trigger is pushed onto the neurons that cloning deems important, so that a defence that rests on importance is
tested where it is weakest. It has no other use, and nothing here hides a trigger from a detector::

    from layerscope.methods.medic.attacks import eval as stress
    patch = stress.train_adaptive(model, (x, y), target=0, epochs=1, batch_size=32, lr=0.01)
    print(patch.pixels)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.medic.attacks.eval.adaptive import Patch as Patch
    from layerscope.methods.medic.attacks.eval.adaptive import train_adaptive as train_adaptive

__getattr__, __dir__, __all__ = lazy(__name__, {"Patch": "adaptive", "train_adaptive": "adaptive"})
