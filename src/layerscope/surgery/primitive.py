"""Put other modules in place of some, everywhere they are reachable from, and back again.

The primitive under every layer exchange: it knows paths and parents, and nothing of norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from torch import nn

from layerscope.errors import SwapError, did_you_mean


class Exchange:
    """Modules that were put in place of others; :meth:`undo` puts the old objects back, untouched.

    Also a context manager that undoes at the end of its block.
    """

    def __init__(self, model: nn.Module, pairs: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
        self._original = model
        self._pairs = dict(pairs)
        self._places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        self.model = model
        """The network to use from now on: the same object, unless the root itself was exchanged."""
        new_of = {id(old): (old, new) for old, new in self._pairs.values()}
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None and id(child) in new_of:
                    self._places.append((parent, name, *new_of[id(child)]))
        for parent, name, _, new in self._places:
            parent._modules[name] = new
        if id(model) in new_of:
            self.model = new_of[id(model)][1]
        self.active = True
        """Whether the new modules are in place."""

    @property
    def pairs(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """Path -> (old module, new module), one entry for each exchanged object."""
        return dict(self._pairs)

    def undo(self) -> nn.Module:
        """Put every old module object back at every place it stood, and return the original network.

        A second call does nothing.

        Raises:
            SwapError: a place no longer holds what this exchange put there (undo later exchanges first).
        """
        if not self.active:
            return self._original
        for parent, name, _, new in self._places:
            if parent._modules.get(name) is not new:
                raise SwapError(
                    f"cannot undo: {type(parent).__name__}.{name} no longer holds what this exchange put there; "
                    "undo the later exchanges first, in reverse order"
                )
        for parent, name, old, _ in self._places:
            parent._modules[name] = old
        self.active = False
        self.model = self._original
        return self._original

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def exchange(model: nn.Module, replacements: Mapping[str, nn.Module]) -> Exchange:
    """Replace the modules at these paths by others, at every parent they are reachable from.

    A module that is shared (reachable by several paths) is replaced once, everywhere; naming one of its paths is
    enough. Nothing of the old modules is touched, so :meth:`Exchange.undo` restores the network to the bit. The
    new modules are used as they are: dtype, device and train flag are the caller's business.

    Args:
        model: any module. The path ``""`` is the model itself: use :attr:`Exchange.model` afterwards.
        replacements: module path, as in ``model.named_modules()``, -> new module. A new module may hold the old one.

    Raises:
        SwapError: an unknown path (with near misses), two different modules for one shared module, or a path that
            lies inside another one that is replaced as well.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> swapped = exchange(net, {"1": nn.Tanh()})
    >>> net[1], swapped.undo()[1]
    (Tanh(), ReLU())
    """
    refuse_wrapped(model)
    paths = dict(model.named_modules(remove_duplicate=False))
    chosen: dict[int, tuple[str, nn.Module]] = {}
    for path, new in replacements.items():
        if path not in paths:
            raise SwapError(f"{type(model).__name__} has no module {path!r}; {did_you_mean(path, paths)}")
        if not isinstance(new, nn.Module):
            raise SwapError(f"the replacement for {path!r} is a {type(new).__name__}, not a module")
        other, present = chosen.setdefault(id(paths[path]), (path, new))
        if present is not new:
            raise SwapError(f"{path!r} and {other!r} are one shared module: it can only get one replacement")
    for path, _ in chosen.values():
        inside = {id(m) for m in paths[path].modules()} - {id(paths[path])}
        if nested := [p for i, (p, _) in chosen.items() if i in inside]:
            raise SwapError(f"{nested[0]!r} lies inside {path!r}, which is replaced as well: name only one of them")
    return Exchange(model, {path: (paths[path], new) for path, new in chosen.values()})


def refuse_wrapped(model: nn.Module) -> None:
    """Raise for a network whose modules cannot be exchanged safely: scripted, compiled or already distributed.

    Raises:
        SwapError: with the remedy.
    """
    if not isinstance(model, nn.Module):
        raise SwapError(f"expected a torch.nn.Module, got {type(model).__name__}")
    names = {cls.__qualname__ for cls in type(model).__mro__}
    name = type(model).__name__
    if "ScriptModule" in names:
        raise SwapError(f"{name} is a scripted module, which is frozen: exchange layers first, then script it")
    if "OptimizedModule" in names:
        raise SwapError(f"{name} is compiled: exchange layers in the original, model._orig_mod, then compile it again")
    if names & {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule"}:
        raise SwapError(
            f"{name} keeps its own list of parameters: exchange layers in the original (model.module), then wrap it"
        )
