"""From numbers to a verdict: healthy, slow, very slow, unstable, fails or unknown, with the reason and the remedy.

Four axes are judged: F forward growth, I informativeness, B backward growth, N batch noise (see ``verdict.axes``). The
first three are the properties of Lubana, Dick, Tanaka, "Beyond BatchNorm" (NeurIPS 2021, arXiv 2106.05956)::

    import layerscope
    net = layerscope.net("cfg_20", norm="layer", in_shape=(1, 16, 16))
    profile = layerscope.profile(net, layerscope.batch("digits:size=16", 32))
    print(layerscope.judge(profile))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.verdict.micro import real_steps as real_steps
    from layerscope.verdict.rules import judge as judge
    from layerscope.verdict.thresholds import Thresholds as Thresholds
    from layerscope.verdict.types import Analytic as Analytic
    from layerscope.verdict.types import Axis as Axis
    from layerscope.verdict.types import Choice as Choice
    from layerscope.verdict.types import Comparison as Comparison
    from layerscope.verdict.types import MicroTrain as MicroTrain
    from layerscope.verdict.types import Verdict as Verdict

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "judge": "rules",
        "real_steps": "micro",
        "MicroTrain": "types",
        "Thresholds": "thresholds",
        "Analytic": "types",
        "Axis": "types",
        "Choice": "types",
        "Comparison": "types",
        "Verdict": "types",
    },
)
