"""Lazy public names for a room's ``__init__``: importing the room imports no torch, using a name does.

::

    if TYPE_CHECKING:
        from layerscope.norms.registry import build as build
    __getattr__, __dir__, __all__ = lazy(__name__, {"build": "registry"})
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``.

    Args:
        package: the room's ``__name__``.
        names: public name -> module inside the room that defines it (or an absolute ``layerscope...`` module).
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        target = names[name]
        module = import_module(target if target.startswith("layerscope.") else f"{package}.{target}")
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, directory, list(names)
