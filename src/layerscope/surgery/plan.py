"""Plan, apply, undo: exchange the norms of a network for another choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import nn

from layerscope import norms
from layerscope.errors import SwapError
from layerscope.spec import Spec
from layerscope.surgery.adapters import Known, describe
from layerscope.surgery.carry import starts_silent
from layerscope.surgery.neighbours import Neighbours
from layerscope.surgery.optimiser import Succession, repoint
from layerscope.surgery.planner import Change, Decision, Indivisible, Planner
from layerscope.surgery.primitive import Exchange, exchange, refuse_wrapped
from layerscope.surgery.select import Only, places, select
from layerscope.surgery.sites import Site, Status
from layerscope.surgery.table import plan_table
from layerscope.surgery.trace import FUNCTIONAL_NORMS, Flow, trace


@dataclass(frozen=True)
class SwapPlan:
    """What an exchange would do: every norm of the network, what it becomes, and why one is refused.

    Nothing has happened yet. ``print(plan)`` shows a table of at most 80 columns.
    """

    network: str
    """Class name of the network."""
    spec: str
    sites: tuple[Site, ...]
    notes: tuple[str, ...] = ()
    """What concerns the network as a whole."""
    _model: nn.Module = field(repr=False, compare=False, default_factory=nn.Identity)
    _changes: tuple[tuple[Change, ...], ...] = field(repr=False, compare=False, default=())

    @property
    def swapped(self) -> tuple[Site, ...]:
        """The sites that will be exchanged."""
        return tuple(s for s in self.sites if s.status == "swap")

    @property
    def kept(self) -> tuple[Site, ...]:
        """The sites that stay because they were not selected or are what is asked for already."""
        return tuple(s for s in self.sites if s.status == "keep")

    @property
    def refused(self) -> tuple[Site, ...]:
        """The sites that cannot be exchanged, each with its reason."""
        return tuple(s for s in self.sites if s.status == "refuse")

    def summary(self) -> str:
        """One line: what, and how many."""
        return (
            f"{self.network} -> {self.spec}: {len(self.swapped)} of {len(self.sites)} norms exchanged, "
            f"{len(self.kept)} kept, {len(self.refused)} refused"
        )

    def __str__(self) -> str:
        return plan_table(self.summary(), self.sites, self.notes)

    def apply(self) -> Applied:
        """Carry the plan out and return the handle that undoes it.

        Raises:
            SwapError: the network is no longer what it was when the plan was made.
        """
        now = dict(self._model.named_modules(remove_duplicate=False))
        new: dict[int, tuple[Change, nn.Module]] = {}
        for changes in self._changes:
            for change in changes:
                if now.get(change.path) is not change.old:
                    raise SwapError(f"{change.path!r} is not what it was when the plan was made: plan again")
                if id(change.old) not in new:
                    new[id(change.old)] = (change, change.make())
        swap = exchange(self._model, {change.path: module for change, module in new.values()})
        return Applied(self, swap, _successions(swap, self._changes))


class Applied:
    """An exchange that was carried out. ``undo()`` puts the old module objects back, untouched.

    Also a context manager that undoes at the end of its block.
    """

    def __init__(self, plan: SwapPlan, swap: Exchange, successions: tuple[Succession, ...]) -> None:
        self.plan = plan
        self._swap = swap
        self._successions = successions
        self._undo_optimizers: list[Any] = []

    @property
    def model(self) -> nn.Module:
        """The network to use: the same object, unless its root was itself the norm."""
        return self._swap.model

    @property
    def replaced(self) -> Mapping[str, tuple[nn.Module, nn.Module]]:
        """Path -> (old module, new module); holds the activations and convolutions that changed as well."""
        return self._swap.pairs

    def repoint(self, optimizer: torch.optim.Optimizer) -> None:
        """Make an optimiser train the new parameters in place of the old ones, with the state they had.

        ``undo()`` puts the optimiser back as well.

        Raises:
            SwapError: the optimiser holds none of the exchanged parameters.
        """
        self._undo_optimizers.append(repoint(optimizer, self._successions))

    def undo(self) -> nn.Module:
        """Restore the network (and re-pointed optimisers) to the bit, and return it. A second call does nothing.

        Raises:
            SwapError: a later exchange is still in place.
        """
        model = self._swap.undo()
        while self._undo_optimizers:
            self._undo_optimizers.pop()()
        return model

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def plan_swap(
    model: nn.Module,
    spec: str | Spec,
    *,
    example: Any = None,
    only: Only = None,
    keep_affine: bool = True,
    indivisible: Indivisible = "nearest",
) -> SwapPlan:
    """Plan the exchange of every norm in ``model`` for ``spec``; nothing is changed until ``plan.apply()``.

    Norm classes are matched exactly, so that a class that merely inherits from a norm is refused and never gutted;
    fused norm+activation classes keep their activation. Choices that are more than a norm module (an own activation,
    a normalized weight) need the neighbours of each norm: give an ``example`` unless the network is a plain Sequential.

    Args:
        model: any module; the network itself may be a norm.
        spec: a norm choice, such as ``group:size=8``; ``mixture:k=3,where=2nd`` names its places itself.
        example: one small batch that runs through the network: a tensor, a tuple of positional arguments or a dict of
            keyword arguments. It is run once in eval mode; nothing changes.
        only: which sites: a path pattern (``layer1.*``), ``stage:2``, indices, a list of these, or a function
            ``Site -> bool``. All by default.
        keep_affine: carry scale and shift over where shapes agree.
        indivisible: what to do where groups do not divide the channels: take the ``nearest`` divisor and say so, or
            ``refuse`` the site.

    Returns:
        A :class:`SwapPlan`.

    Raises:
        SwapError: a wrapped, compiled or scripted network, an example that does not run, a selection that fits nothing.
        SpecError: an unknown or ambiguous spec.

    >>> net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU())
    >>> plan = plan_swap(net, "group:size=8")
    >>> plan.sites[0].becomes, plan.sites[0].note
    ('group:size=6', 'size=8 does not divide 12 channels: size=6')
    """
    refuse_wrapped(model)
    recipe = norms.recipe(spec)
    if (where := recipe.where) is not None:
        if only is not None:
            raise SwapError(f"{recipe.spec} names its places, and so does only={only!r}: give one of them")
        recipe, only = recipe.everywhere(), places(where)
    if indivisible not in ("nearest", "refuse"):
        raise SwapError(f"indivisible must be 'nearest' or 'refuse', got {indivisible!r}")
    paths = _paths(model)
    modules = dict(model.named_modules())
    found = [
        (path, module, known)
        for path, module in modules.items()
        if "parametrizations" not in path.split(".") and (known := describe(module)) is not None
    ]
    flow = None if example is None else trace(model, example, {id(m) for _, m, _ in found})
    stages = _stages(flow, {id(m): known for _, m, known in found})
    neighbours = Neighbours(paths, modules, flow)
    planner = Planner(model, recipe, neighbours, flow, keep_affine=keep_affine, indivisible=indivisible)

    bare = [
        Site(i, paths[id(m)], type(m).__name__, known.channels, "keep", stage=stages.get(id(m)), shape=_shape(flow, m))
        for i, (_, m, known) in enumerate(found)
    ]
    chosen = select(bare, only)
    sites: list[Site] = []
    changes: list[tuple[Change, ...]] = []
    with torch.random.fork_rng(devices=[]):  # layers are built here to see whether they can be, and thrown away
        for site, (path, module, known) in zip(bare, found, strict=True):
            selected = site.index in chosen
            decision = planner.decide(path, module, known) if selected else Decision(notes=["not selected"])
            sites.append(_decided(site, decision))
            changes.append(tuple(decision.changes) if decision.refused is None else ())
    notes = _notes(model, flow, found, sites, recipe, keep_affine)
    return SwapPlan(type(model).__name__, str(recipe.spec), tuple(sites), notes, model, tuple(changes))


def _decided(site: Site, decision: Decision) -> Site:
    status: Status = "refuse" if decision.refused is not None else "swap" if decision.changes else "keep"
    return Site(
        site.index, site.paths, site.kind, site.channels, status,
        decision.becomes, decision.refused, decision.note, site.stage, site.shape,
    )  # fmt: skip


def _paths(model: nn.Module) -> dict[int, tuple[str, ...]]:
    paths: dict[int, list[str]] = defaultdict(list)
    try:
        for path, module in model.named_modules(remove_duplicate=False):
            paths[id(module)].append(path)
    except RecursionError:
        raise SwapError(
            f"{type(model).__name__} contains itself: one of its modules has a module around it as an attribute, so "
            "that not even .train() ends; keep that one in a list or a weakref"
        ) from None
    return {key: tuple(value) for key, value in paths.items()}


def _shape(flow: Flow | None, module: nn.Module) -> tuple[int, ...] | None:
    calls = flow.calls(module) if flow is not None else []
    return calls[0].in_shape if calls else None


def _stages(flow: Flow | None, known: Mapping[int, Known]) -> dict[int, int]:
    """Number of the spatial resolution each site works at, in order of execution, from 1."""
    order: dict[tuple[int, ...], int] = {}
    stages: dict[int, int] = {}
    for step in flow.steps if flow is not None else ():
        site = known.get(id(step.module))
        if site is not None:
            positions = step.in_shape[1:-1] if site.layout == "last" else step.in_shape[2:]
            stages.setdefault(id(step.module), order.setdefault(positions, len(order) + 1))
    return stages


def _notes(
    model: nn.Module,
    flow: Flow | None,
    found: list[tuple[str, nn.Module, Known]],
    sites: list[Site],
    recipe: norms.Recipe,
    keep_affine: bool,
) -> tuple[str, ...]:
    notes = []
    if not found:
        notes.append("no norm module was found")
    standardized = [m for m in model.modules() if "StdConv" in type(m).__name__]
    if standardized:
        name = type(standardized[0]).__name__
        notes.append(f"{len(standardized)} convolution(s) keep their own weight standardization ({name})")
    hidden = sorted({s.path for s in flow.steps if s.module is None and s.name in FUNCTIONAL_NORMS}) if flow else []
    if hidden:
        notes.append(
            f"{len(hidden)} module(s) call a norm as a function, which cannot be exchanged: {', '.join(hidden[:3])}"
        )
    silent = sum(starts_silent(k) for (*_, k), s in zip(found, sites, strict=True) if s.status == "swap")
    if silent:
        kept = "the new norms keep that (keep_affine=False starts them at 1)"
        lost = f"{recipe.spec.name} has no such scale, so that these branches speak from the start"
        notes.append(
            f"{silent} norm(s) start with scale 0, so that their residual branch is silent at initialization; "
            + (lost if recipe.info.norm is None else kept if keep_affine else "the new norms start at 1")
        )
    return tuple(notes)


def _successions(swap: Exchange, sites: Iterable[Iterable[Change]]) -> tuple[Succession, ...]:
    """What left and what came, site by site: a norm's successors may stand in the slots around it."""
    new_of = {id(old): new for old, new in swap.pairs.values()}
    result = []
    for changes in sites:
        left: list[nn.Parameter] = []
        came: list[nn.Parameter] = []
        heirs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for old in {id(change.old): change.old for change in changes}.values():
            if (new := new_of.pop(id(old), None)) is not None:
                gone, arrived, pairs = _succession(old, new)
                left += gone
                came += arrived
                heirs += pairs
        result.append(Succession(tuple(left), tuple(came), tuple(heirs)))
    return tuple(result)


def _succession(
    old: nn.Module, new: nn.Module
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[tuple[nn.Parameter, nn.Parameter]]]:
    kept = {id(p) for p in old.parameters()} & {id(p) for p in new.parameters()}
    left = {name: p for name, p in old.named_parameters() if id(p) not in kept}
    came = {name: p for name, p in new.named_parameters() if id(p) not in kept}
    heirs = []
    free = dict(came)
    for name, p in left.items():
        last = name.rpartition(".")[2]
        match = next(
            (n for n, q in free.items() if n.rpartition(".")[2] == last and q.numel() == p.numel()),
            next((n for n, q in free.items() if f".{last}." in f".{n}" and q.shape == p.shape), None),
        )
        if match is not None:
            heirs.append((p, free.pop(match)))
    return list(left.values()), list(came.values()), heirs
