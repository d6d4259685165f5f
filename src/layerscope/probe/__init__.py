"""probe: watch one forward and backward pass of any network, layer by layer, and change nothing.

Every output is reduced inside its hook to a few numbers; nothing is stored. The measures are those of Lubana, Dick and
Tanaka 2021 (arXiv 2106.05956) and some that later work adds (see ``layerscope.quantities``).

::

    from layerscope.probe import profile
    seen = profile(model, (x, y), batch_size=32)
    for layer in seen.of("block"):
        print(layer.name, layer.ms, layer.cosine, layer.grad_scaled)
    print(seen.readout_cosine, seen.batch_noise)

``tap`` takes a reading of your own at the same call sites, in a run that you make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.probe.network import check_device as check_device
    from layerscope.probe.outputs import loss as loss
    from layerscope.probe.records import LayerRecord as LayerRecord
    from layerscope.probe.records import Level as Level
    from layerscope.probe.records import Profile as Profile
    from layerscope.probe.run import profile as profile
    from layerscope.probe.taps import tap as tap

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "profile": "run",
        "tap": "taps",
        "check_device": "network",
        "loss": "outputs",
        "LayerRecord": "records",
        "Level": "records",
        "Profile": "records",
    },
)
