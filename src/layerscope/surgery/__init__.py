"""Exchange layers inside any ``nn.Module``: plan -> apply -> undo.

A swap by ``isinstance`` deletes activations wherever a class is a norm and an activation in one (all 121 of a
DenseNet-121 as timm builds it). Here the plan comes first, classes are matched exactly, and undo restores to the bit::

    from layerscope.surgery import plan_swap

    plan = plan_swap(model, "group:size=8", example=x)   # changes nothing
    print(plan)                                          # every site, what it becomes, what is refused and why
    with plan.apply():                                   # or: applied = plan.apply(); ...; applied.undo()
        loss = criterion(model(x), y)

``exchange(model, {path: module})`` is the primitive below it, for anything that is not a norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.surgery.activations import count_activations as count_activations
    from layerscope.surgery.activations import is_activation as is_activation
    from layerscope.surgery.adapters import Known as Known
    from layerscope.surgery.adapters import register_adapter as register_adapter
    from layerscope.surgery.plan import Applied as Applied
    from layerscope.surgery.plan import SwapPlan as SwapPlan
    from layerscope.surgery.plan import plan_swap as plan_swap
    from layerscope.surgery.primitive import Exchange as Exchange
    from layerscope.surgery.primitive import exchange as exchange
    from layerscope.surgery.sites import Site as Site

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "plan_swap": "plan",
        "SwapPlan": "plan",
        "Applied": "plan",
        "Site": "sites",
        "exchange": "primitive",
        "Exchange": "primitive",
        "register_adapter": "adapters",
        "Known": "adapters",
        "count_activations": "activations",
        "is_activation": "activations",
    },
)
