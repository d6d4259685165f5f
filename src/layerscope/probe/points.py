"""Where to look: the modules whose outputs are recorded, and the role each one plays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from layerscope.errors import ProbeError, did_you_mean
from layerscope.probe.network import Network
from layerscope.probe.records import Role

_BLOCK = re.compile(r"block|bottleneck|residual|(encoder|decoder|dense)?layer$", re.IGNORECASE)
_NOT_BLOCK = re.compile(r"norm|scale|pool|embed|modulelist|moduledict", re.IGNORECASE)
_OWN_ACTIVATION = re.compile(r"evonorm|normact|filterresponse.*tlu|frn.*tlu", re.IGNORECASE)
_NORM = re.compile(r"norm|frn|whiten|^grn|dyt$|^derf|rescale", re.IGNORECASE)
_ACTIVATION = re.compile(
    r"relu|linearunit|threshold|gelu|silu|swish|mish|elu$|sigmoid|tanh|softplus|softmax|tlu$|^act|activation|glu$",
    re.IGNORECASE,
)
_POOL = re.compile(r"pool", re.IGNORECASE)


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

    @property
    def kind(self) -> str:
        """Class name."""
        return type(self.module).__name__


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
    if issubclass(kind, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.LocalResponseNorm) or _NORM.search(name):
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
    enclosing: dict[str, str | None] = {}
    inside_leaf: list[str] = []
    for path, module in network.modules:
        name = path or network.name
        around = enclosing.get(path.rpartition(".")[0]) if path else None
        block = _matches(name, blocks) if blocks is not None else is_block(module)
        enclosing[path] = name if block else around
        if any(path.startswith(prefix) for prefix in inside_leaf):
            continue
        leaf = not _has_children(module) or isinstance(module, nn.MultiheadAttention)
        if isinstance(module, nn.MultiheadAttention):
            inside_leaf.append(f"{path}." if path else "")
        elif "parametrizations" in module._modules:
            inside_leaf.append(f"{path}.parametrizations." if path else "parametrizations.")
        if type(module) is nn.ModuleDict or type(module) is nn.ModuleList:
            continue
        candidate = blocks is None and not (leaf or block) and bool(path) and _may_be_block(module)
        if _matches(name, select) if select is not None else leaf or block or candidate:
            role = "block" if block or candidate else role_of(module)
            points.append(Point(name, module, role, around, leaf, candidate))
    return points


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
