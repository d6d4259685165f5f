"""layerscope: an instrument for what happens to activations inside a deep network.

    >>> import layerscope                                                          # doctest: +SKIP
    >>> result = layerscope.compare("resnet56", ["batch", "layer", "none"])        # doctest: +SKIP
    >>> print(result)                                                              # doctest: +SKIP

Importing the package imports no torch: every public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which takes most of the time that importing this module would take
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

#: public name -> (module, attribute)
_PUBLIC: dict[str, tuple[str, str]] = {
    "compare": ("layerscope.comparison", "compare"),
    "diagnose": ("layerscope.comparison", "diagnose"),
    "profile": ("layerscope.probe", "profile"),
    "judge": ("layerscope.verdict", "judge"),
    "norm": ("layerscope.norms", "build"),
    "register_norm": ("layerscope.norms", "register_norm"),
    "plan_swap": ("layerscope.surgery", "plan_swap"),
    "net": ("layerscope.nets", "build"),
    "batch": ("layerscope.data", "batch"),
    "fit": ("layerscope.training", "fit"),
    "watch": ("layerscope.training", "watch"),
    "Comparison": ("layerscope.verdict.types", "Comparison"),
    "Profile": ("layerscope.probe.records", "Profile"),
    "Verdict": ("layerscope.verdict.types", "Verdict"),
    "LayerscopeError": ("layerscope.errors", "LayerscopeError"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'layerscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
