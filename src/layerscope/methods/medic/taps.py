"""Where two networks are compared: tap points, how they are found, and reading them during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layerscope.errors import did_you_mean
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.weights import wide
from layerscope.probe.layouts import AxisMemory
from layerscope.probe.network import open_network
from layerscope.probe.points import Point, find_points
from layerscope.training.evaluation import modes_kept

Kind = Literal["conv", "norm", "norm+act", "dense"]
Choice = Literal["late", "conv", "norm", "conv+norm", "all"]
Taps = Choice | Sequence[str] | Callable[[nn.Module], Sequence[str]]

_ROLES: dict[str, tuple[str, ...]] = {
    "late": ("conv", "norm"), "conv": ("conv",), "norm": ("norm",), "conv+norm": ("conv", "norm"),
    "all": ("conv", "norm", "linear"),
}  # fmt: skip


@dataclass(frozen=True)
class Tap:
    """One place where teacher and student are compared."""

    name: str
    """Module whose output gives z and sigma."""
    kind: Kind
    act: str | None = None
    """For ``norm+act``: the activation whose output is compared and whose gradient is taken."""
    act_call: int = 0
    """Which call of that activation in a forward pass; one module may serve several norms."""
    overwritten: bool = False
    """The network goes on in place on the output, so that what is read must be a copy."""
    channels_last: bool = False
    """Channels are the last axis of the output (tokens, maps [B, H, W, C]), not the second."""

    @property
    def channel_axis(self) -> int:
        """Of the output."""
        return -1 if self.channels_last else 1


@dataclass
class _Call:
    """One call of a module while a network was watched."""

    path: str
    number: int
    output: Tensor
    version: int
    fed_by: str | None
    channels_last: bool


class Reading:
    """What the last forward pass gave at the taps, with its graph."""

    def __init__(self) -> None:
        self.at: dict[str, Tensor] = {}
        """Tap name -> output of the tapped module."""
        self.compared: dict[str, Tensor] = {}
        """Tap name -> what is compared: the same, or the output of the activation."""

    def clear(self) -> None:
        """Let go of the tensors."""
        self.at.clear()
        self.compared.clear()


def suggest_taps(model: nn.Module, kind: Taps, example: Tensor) -> list[Tap]:
    """The taps of a network, in execution order.

    A norm followed by an activation module that is given the norm's own output becomes one ``norm+act`` tap: z before
    the activation, difference and gradient after it. A functional ``F.relu(norm(x))`` cannot be seen by module hooks;
    such a norm is compared before the activation and listed as ``norm``.

    Args:
        model: the teacher; it is not changed.
        kind: ``conv``, ``norm``, ``conv+norm`` (as released), ``all`` (dense layers too; the logits never), ``late``,
            module names, or a function of the model that returns them. ``late`` is the last half of the ``norm+act``
            taps, so of what later layers read; of the norms or else the convolutions where there are not two of those.
        example: a batch to run through.

    Raises:
        MedicError: an unknown kind or name, a named module that is called twice in one pass or returns no tensor, no
            tap found.
    """
    return find_taps(model, kind, example)[0]


def find_taps(model: nn.Module, kind: Taps, example: Tensor) -> tuple[list[Tap], list[str]]:
    """:func:`suggest_taps`, and the modules that ``kind`` means but that have several outputs in one pass.

    Those are left out where they were not named: a network may use one convolution many times over.
    """
    points = {p.path: p for p in find_points(open_network(model)) if p.is_leaf}
    calls = _watch(model, {path: p.module for path, p in points.items()}, example)
    order = [call.path for call in calls]
    taps, left_out = [], []
    for path in _wanted(kind, model, points, calls):
        if (times := order.count(path)) != 1:
            if isinstance(kind, str):
                left_out.append(path)
                continue
            raise MedicError(
                f"tap {path!r} is called {times} times in one forward pass; name taps that are called once"
            )
        call = calls[order.index(path)]
        overwritten = call.output._version != call.version
        found: Kind
        if points[path].role == "norm":
            act = next((c for c in calls if c.fed_by == path and points[c.path].role == "activation"), None)
            found = "norm+act" if act else "norm"
            name, number = (act.path, act.number) if act else (None, 0)
            taps.append(Tap(path, found, name, number, overwritten, call.channels_last))
        else:
            found = "conv" if points[path].role == "conv" else "dense"
            taps.append(Tap(path, found, overwritten=overwritten, channels_last=call.channels_last))
    if not taps:
        raise MedicError(f"taps={kind!r} finds nothing in {type(model).__name__}: use taps='all' or name modules")
    taps.sort(key=lambda t: order.index(t.name))
    return _late(taps) if kind == "late" else taps, left_out


def _late(taps: Sequence[Tap]) -> list[Tap]:
    """The last half, rounded up, of the best kind that there are two of."""
    for kinds in (("norm+act",), ("norm+act", "norm")):
        found = [tap for tap in taps if tap.kind in kinds]
        if len(found) > 1:
            break
    else:
        found = list(taps)
    return found[len(found) // 2 :]


def _wanted(kind: Taps, model: nn.Module, points: dict[str, Point], calls: list[_Call]) -> list[str]:
    if callable(kind):
        kind = list(kind(model))
    order = list(dict.fromkeys(call.path for call in calls))
    if isinstance(kind, str):
        if kind not in _ROLES:
            raise MedicError(f"no taps {kind!r}: {did_you_mean(kind, _ROLES)}, or a list of module names")
        weighted = [path for path in order if points[path].role in ("conv", "linear")]
        # the last layer with weights gives the logits
        return [path for path in order if points[path].role in _ROLES[kind] and path not in weighted[-1:]]
    for name in kind:
        if name not in points:
            raise MedicError(f"no module {name!r} to tap: {did_you_mean(name, points)}")
        if name not in order:
            raise MedicError(f"tap {name!r} is not called in a forward pass, or its output is no tensor")
    return list(kind)


def feeds(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Pairs of leaf modules of which the second is given the first one's own output, in execution order."""
    modules = {p.path: p.module for p in find_points(open_network(model)) if p.is_leaf}
    return [(call.fed_by, call.path) for call in _watch(model, modules, example) if call.fed_by is not None]


def _watch(model: nn.Module, modules: dict[str, nn.Module], example: Tensor) -> list[_Call]:
    """Every call of a module that returns a tensor, in order. Holding the tensors keeps their identities apart."""
    calls: list[_Call] = []
    axes = AxisMemory()

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def on_forward(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            given = args[0] if args else None
            # an output that was written over (``out += shortcut``) is another value in the same tensor
            fed_by = next((c.path for c in calls if c.output is given and c.output._version == c.version), None)
            number = sum(c.path == path for c in calls)
            last = output.ndim > 2 and axes.channels_are_last(module, output)
            calls.append(_Call(path, number, output, output._version, fed_by, last))

        return on_forward

    handles = [module.register_forward_hook(hook(path)) for path, module in modules.items()]
    try:
        with modes_kept(model), torch.no_grad(), out_of_place(model):
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """In-place activations write into new tensors while this lasts, so that what a tap holds is not overwritten."""
    changed = [m for m in model.modules() if getattr(m, "inplace", False) is True]
    try:
        for module in changed:
            module.inplace = False  # type: ignore[assignment]  # a plain attribute of activation modules
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]  # as above


@contextmanager
def tapped(model: nn.Module, taps: Sequence[Tap]) -> Iterator[Reading]:
    """While this lasts, every forward pass fills the reading that is given.

    Raises:
        MedicError: the network has no module of a tap's name.
    """
    modules = dict(model.named_modules())
    reading = Reading()
    numbers: dict[str, int] = {}
    handles = []

    def own(tap: Tap) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def on_forward(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            reading.at[tap.name] = output
            if tap.act is None:
                reading.compared[tap.name] = output
            return output.clone() if tap.overwritten else None

        return on_forward

    def after(act: str) -> Callable[[nn.Module, Any, Tensor], None]:
        served = {tap.act_call: tap.name for tap in taps if tap.act == act}

        def on_forward(module: nn.Module, args: Any, output: Tensor) -> None:
            number = numbers.get(act, 0)
            numbers[act] = number + 1
            if number in served:
                reading.compared[served[number]] = output

        return on_forward

    try:
        for name in {n for tap in taps for n in (tap.name, tap.act) if n is not None}:
            if name not in modules:
                raise MedicError(f"{type(model).__name__} has no module {name!r}: the factory builds another network")
        handles = [modules[tap.name].register_forward_hook(own(tap)) for tap in taps]
        handles += [modules[act].register_forward_hook(after(act)) for act in {t.act for t in taps if t.act}]
        handles.append(model.register_forward_pre_hook(lambda module, args: numbers.clear()))
        with out_of_place(model):
            yield reading
    finally:
        for handle in handles:
            handle.remove()


def tap_statistics(
    model: nn.Module, data: Tensor, taps: Sequence[Tap], *, batch_size: int = 256
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per-channel mean and standard deviation of every tap, in evaluation mode.

    Pooled exactly over samples and positions, in float64; the released code averages the variances of batches
    instead, which is smaller by the variance between batch means.

    Args:
        model: the teacher; it is not changed.
        data: samples [N, ...] on the model's device.
        taps: from :func:`suggest_taps`.
        batch_size: samples at a time; it does not change the result.

    Returns:
        tap name -> (mu, sigma), float32 or wider, shaped [1, C, 1, ...] to broadcast over [B, C, ...], or [1, ..., C]
        where the channels come last.
    """
    count: dict[str, int] = {}
    sums: dict[str, Tensor] = {}
    like: dict[str, Tensor] = {}
    axes = {tap.name: tap.channel_axis for tap in taps}
    with modes_kept(model), torch.no_grad(), tapped(model, taps) as reading:
        model.eval()
        for part in torch.split(data, batch_size):
            model(part)
            for name, output in reading.at.items():
                a = output.double().movedim(axes[name], 0).flatten(1)
                both = torch.stack((a.sum(1), a.square().sum(1)))
                sums[name] = sums[name] + both if name in sums else both
                count[name] = count.get(name, 0) + a.shape[1]
                like[name] = wide(output[:0])
    found = {}
    for name, (first, second) in sums.items():
        n, shape = count[name], [1] * like[name].ndim
        shape[axes[name]] = -1
        mean = first / n
        variance = (second / n - mean.square()).clamp_min(0) * n / max(n - 1, 1)
        found[name] = (mean.to(like[name]).view(shape), variance.sqrt().to(like[name]).view(shape))
    return found
