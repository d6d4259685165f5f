"""Focused convolutions: compute only the positions that may matter, or say that it does not pay.

A pretrained CNN runs densely up to a cut; there, each image's active set is chosen, and everything after it works on
compact rows of active positions with a kernel that reads its inputs through an index table. A search finds cut,
relevance map, threshold and fill under an accuracy budget, times them against the best dense engine, and returns the
dense network where nothing qualifies.

After Tung et al., "An automated approach for improving the inference latency and energy efficiency of pretrained CNNs
by removing irrelevant pixels with focused convolutions" (ASP-DAC 2024, arXiv 2310.07782); semantics, kernel and
search are ours.

::

    from layerscope.methods import focus
    focused = focus.focus(model, batches, max_accuracy_drop=1.0)
    print(focused.report.reason)              # why this cut and threshold, or why dense
    y = focused(x)                            # the model's outputs
    print(focused.last_aoi)                   # what was computed: one mask an image; empty where dense won

Importing this room imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.focus.aoi import AoI as AoI
    from layerscope.methods.focus.conv import FocusedConv2d as FocusedConv2d
    from layerscope.methods.focus.cuts import profile as profile
    from layerscope.methods.focus.model import FocusedModel as FocusedModel
    from layerscope.methods.focus.records import Candidate as Candidate
    from layerscope.methods.focus.records import CutPoint as CutPoint
    from layerscope.methods.focus.records import FocusConfig as FocusConfig
    from layerscope.methods.focus.records import FocusReport as FocusReport
    from layerscope.methods.focus.records import MapScore as MapScore
    from layerscope.methods.focus.records import ProfileReport as ProfileReport
    from layerscope.methods.focus.search import Effort as Effort
    from layerscope.methods.focus.search import focus as focus

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "AoI": "aoi",
        "Candidate": "records",
        "CutPoint": "records",
        "Effort": "search",
        "FocusConfig": "records",
        "FocusReport": "records",
        "FocusedConv2d": "conv",
        "FocusedModel": "model",
        "MapScore": "records",
        "ProfileReport": "records",
        "focus": "search",
        "profile": "cuts",
    },
)
