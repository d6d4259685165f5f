"""MEDIC: remove a backdoor from a classifier by cloning what matters on clean images into a fresh network.

Source: Xu, Tao, Honorio, Liu, An, Shen, Cheng, Zhang, "MEDIC: Remove Model Backdoors via Importance Driven Cloning",
CVPR 2023. For defence only: the attacks exist to measure removal on networks that you train yourself, no trojaned
weights are shipped, and a low attack success rate is evidence about the triggers tested, never a certificate::

    from layerscope.methods import medic
    from layerscope.methods.medic import attacks
    cleaned = medic.clone(model, (x, y), epochs=2, batch_size=32)
    print(cleaned.report.effective_clone_weight, cleaned.report.warnings)
    print(medic.evaluate(cleaned.model, (x, y), attacks.BadNet(), target=0))

Importing this room imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.medic.cloning import Clone as Clone
    from layerscope.methods.medic.cloning import clone as clone
    from layerscope.methods.medic.comparing import Threat as Threat
    from layerscope.methods.medic.comparing import compare as compare
    from layerscope.methods.medic.errors import MedicError as MedicError
    from layerscope.methods.medic.fresh import fresh_like as fresh_like
    from layerscope.methods.medic.fresh import shared_past as shared_past
    from layerscope.methods.medic.records import Entry as Entry
    from layerscope.methods.medic.records import Scores as Scores
    from layerscope.methods.medic.records import Table as Table
    from layerscope.methods.medic.report import Report as Report
    from layerscope.methods.medic.scores import evaluate as evaluate
    from layerscope.methods.medic.scores import relearn as relearn
    from layerscope.methods.medic.taps import Tap as Tap
    from layerscope.methods.medic.taps import suggest_taps as suggest_taps
    from layerscope.methods.medic.taps import tap_statistics as tap_statistics
    from layerscope.methods.medic.weights import clone_loss as clone_loss
    from layerscope.methods.medic.weights import importance as importance

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "clone": "cloning", "Clone": "cloning", "Report": "report", "MedicError": "errors",
        "evaluate": "scores", "Scores": "records", "relearn": "scores",
        "compare": "comparing", "Threat": "comparing", "Table": "records", "Entry": "records",
        "fresh_like": "fresh", "shared_past": "fresh",
        "suggest_taps": "taps", "tap_statistics": "taps", "Tap": "taps",
        "importance": "weights", "clone_loss": "weights",
    },
)  # fmt: skip
