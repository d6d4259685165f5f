"""``tap``: a reading of your own at the probe's call sites, while you run the network yourself.

:func:`~layerscope.probe.profile` measures a fixed set of numbers, in training mode, in a run that it makes. A study
that needs another statistic, or a network in evaluation mode, finds the same call sites here, under the same names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from layerscope.probe.network import open_network
from layerscope.probe.outputs import first_tensor
from layerscope.probe.points import find_points
from layerscope.probe.records import Role

T = TypeVar("T")


@contextmanager
def tap(
    model: nn.Module,
    read: Callable[[Tensor], T],
    *,
    roles: Sequence[Role] | None = None,
    select: Sequence[str] | None = None,
    inputs: bool = False,
) -> Iterator[dict[str, list[T]]]:
    """Call ``read`` on what passes each chosen call site; yields the readings by call site, filled while you run.

    ::

        with probe.tap(net, lambda z: float(z.abs().max()), roles=("norm",)) as largest:
            net(x)
        largest["layer1.0.bn1"]          # one number for every call, in order

    A call site is named after its module, the second call within one pass of the whole network ``path#2``, as in a
    :class:`~layerscope.probe.Profile`. Nothing is kept but what ``read`` returns, and the hooks are gone afterwards,
    also if the network raises.

    Args:
        model: any module; its mode, gradients and buffers are yours to care for.
        read: given the detached tensor; make it small, it is all that is kept.
        roles: only call sites of these roles; None: all.
        select: glob patterns of module paths; only these.
        inputs: read what the call site is given instead of what it returns.

    Raises:
        ProbeError: no module, or a pattern that matches none.
    """
    network = open_network(model)
    points = [p for p in find_points(network, select=select) if roles is None or p.role in roles]
    found: dict[str, list[T]] = {}
    calls: Counter[str] = Counter()

    def take(path: str, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is None:
            return
        calls[path] += 1
        name = path if calls[path] == 1 else f"{path}#{calls[path]}"
        found.setdefault(name, []).append(read(tensor.detach()))

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: take(path, args if inputs else output)

    # first, so that the root's own reading, if it is asked for, comes under the right name
    handles = [network.model.register_forward_pre_hook(lambda module, args: calls.clear())]
    handles += [(p.watched or p.module).register_forward_hook(hook(p.path)) for p in points if not p.is_candidate]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
