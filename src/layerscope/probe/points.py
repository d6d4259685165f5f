"""Where to look: the modules whose outputs are recorded, and the role each one plays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from layerscope.errors import ProbeError, did_you_mean
from layerscope.probe.network import Network
from layerscope.probe.records import Role

_BLOCK = re.compile(r"block|bottleneck|residual|(encoder|decoder|dense)?layer$", re.IGNORECASE)
_NOT_BLOCK = re.compile(r"norm|scale|pool|embed|modulelist|moduledict", re.IGNORECASE)
_OWN_ACTIVATION = re.compile(r"evonorm|normact|proxynorm", re.IGNORECASE)
_NORM = re.compile(r"norm|frn|whiten|renorm|^grn|dyt$|^derf|dynamic(tanh|erf)", re.IGNORECASE)
_ACTIVATION = re.compile(
    r"relu|linearunit|threshold|gelu|silu|swish|mish|elu$|sigmoid|tanh|softplus|softmax|tlu$|^act|activation|glu$",
    re.IGNORECASE,
)
_POOL = re.compile(r"pool", re.IGNORECASE)


_NORM_CLASSES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Point:
    """One module to watch."""

    path: str
    module: nn.Module
    role: Role
    block: str | None
    """Path of the innermost block around it (not itself)."""
    is_leaf: bool
    is_candidate: bool = False
    """A module with children that no class name calls a block: recorded as one if its output is a sum of two paths."""
    watched: nn.Module | None = None
    """The module whose output is taken, if it is not ``module`` itself."""

    @property
    def kind(self) -> str:
        """Class name; that of the original class where the weight is parametrized."""
        return type(self.module).__name__.removeprefix("Parametrized")

    @property
    def weight(self) -> nn.Parameter | None:
        """The weight as it is learned: where it is parametrized, the parameter behind it."""
        own = self.module._parameters.get("weight")
        if own is None and "parametrizations" in self.module._modules:
            behind = getattr(self.module.parametrizations, "weight", None)
            own = None if behind is None else getattr(behind, "original", getattr(behind, "original0", None))
        return own


def role_of(module: nn.Module) -> Role:
    """What a module does, by class first and by class name for classes torch does not know."""
    kind: Any = type(module)
    return _role_of_class(kind)


@lru_cache(maxsize=1024)
def _role_of_class(kind: Any) -> Role:
    name = kind.__name__
    if issubclass(kind, nn.MultiheadAttention):
        return "attention"
    if issubclass(kind, _ConvNd):
        return "conv"
    if issubclass(kind, nn.Linear | nn.Bilinear):
        return "linear"
    if _OWN_ACTIVATION.search(name):
        return "activation"
    if issubclass(kind, _NORM_CLASSES) or _NORM.search(name):
        return "norm"
    if _ACTIVATION.search(name) or kind.__module__ == "torch.nn.modules.activation":
        return "activation"
    if _POOL.search(name):
        return "pool"
    if re.search(r"conv", name, re.IGNORECASE):
        return "conv"
    if re.search(r"linear|dense", name, re.IGNORECASE):
        return "linear"
    return "other"


def is_block(module: nn.Module) -> bool:
    """Whether the class name says that this is a repeated (residual) block of the network."""
    kind: Any = type(module)
    return _has_children(module) and _is_block_class(kind)


@lru_cache(maxsize=1024)
def _is_block_class(kind: Any) -> bool:
    return bool(_BLOCK.search(kind.__name__)) and not _NOT_BLOCK.search(kind.__name__)


def find_points(
    network: Network, *, select: Sequence[str] | None = None, blocks: Sequence[str] | None = None
) -> list[Point]:
    """The modules to record, in the order of ``named_modules``.

    Args:
        network: any network.
        select: glob patterns of module paths; only these are recorded. None: leaf modules and blocks.
        blocks: glob patterns of module paths to treat as blocks. None: by class name.

    Raises:
        ProbeError: a pattern that matches no module.
    """
    for pattern in (*(select or ()), *(blocks or ())):
        paths = [path or network.name for path, _ in network.modules]
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ProbeError(f"no module path matches {pattern!r}: {did_you_mean(pattern, paths)}")
    points: list[Point] = []
    by_path = dict(network.modules)
    enclosing: dict[str, str | None] = {}
    inside_leaf: list[str] = []
    for path, module in network.modules:
        name = path or network.name
        around = enclosing.get(path.rpartition(".")[0]) if path else None
        block = _matches(name, blocks) if blocks is not None else is_block(module)
        enclosing[path] = name if block else around
        if any(path.startswith(prefix) for prefix in inside_leaf):
            continue
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue
        whole = isinstance(module, nn.MultiheadAttention) or _is_composite(module)
        leaf = not _has_children(module) or whole
        if whole:
            inside_leaf.append(f"{path}." if path else "")
        elif "parametrizations" in module._modules:
            inside_leaf.append(f"{path}.parametrizations." if path else "parametrizations.")
        if type(module) is nn.ModuleDict or type(module) is nn.ModuleList:
            continue
        if type(module) is nn.Identity and path:
            # It computes nothing; but inside a norm that holds its activation it is given the norm's result, which is
            # a function's and seen nowhere else.
            parent_path = path.rpartition(".")[0]
            parent = by_path[parent_path]
            if select is None and isinstance(parent, _NORM_CLASSES):
                points.append(Point(parent_path or network.name, parent, "norm", around, True, watched=module))
            continue
        candidate = blocks is None and not (leaf or block) and bool(path) and _may_be_block(module)
        if _matches(name, select) if select is not None else leaf or block or candidate:
            role = "block" if block or candidate else role_of(module)
            points.append(Point(name, module, role, around, leaf, candidate))
    return points


def _is_composite(module: nn.Module) -> bool:
    """A norm or activation put together from modules is one call site.

    Unless there is a weight layer inside, as in a wrapper that normalizes around a whole branch; and unless it is one
    of torch's own norm classes with an activation added, which is two.
    """
    kind = type(module)
    if isinstance(module, (*_NORM_CLASSES, nn.Sequential)) or not _has_children(module) or is_block(module):
        return False
    if role_of(module) not in ("norm", "activation"):
        return False
    ours = kind.__module__.startswith("layerscope.norms")
    return ours or not any(isinstance(m, _ConvNd | nn.Linear | nn.MultiheadAttention) for m in module.modules())


def _may_be_block(module: nn.Module) -> bool:
    return not isinstance(module, nn.Sequential) and any(p.ndim > 1 for p in module.parameters())


def _has_children(module: nn.Module) -> bool:
    return any(child is not None for name, child in module._modules.items() if name != "parametrizations")


def _matches(path: str, patterns: Sequence[str] | None) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns or ())


def role_of_function(name: str) -> Role:
    """What a torch function does, by its name."""
    if re.fullmatch(r"conv(_transpose)?\dd", name):
        return "conv"
    if name == "linear":
        return "linear"
    if name.endswith("_norm"):
        return "norm"
    if name == "scaled_dot_product_attention":
        return "attention"
    if "pool" in name:
        return "pool"
    return "activation" if _ACTIVATION.search(name) else "op"
