"""One door to every network: a source and a norm in, a module and what was done on the way out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from layerscope import inputs, nets, norms
from layerscope.copying import duplicate, is_unfinished
from layerscope.errors import SourceError, SpecError, SwapError, did_you_mean
from layerscope.sources import factories, zoo
from layerscope.sources.rng import seeded
from layerscope.spec import Spec
from layerscope.surgery import SwapPlan, plan_swap

AS_IS = "as is"
"""The norm choice that changes nothing."""

Source = str | nn.Module | Callable[..., Any]
#: Networks that factories made: surgery on one that comes a second time would build on the first choice's.
_given_out: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_ZOOS = {"timm": zoo.timm_network, "torchvision": zoo.torchvision_network}
_FORMS = "a reference net, timm:name, torchvision:name, path/file.py:factory or package.module:factory"


@dataclass(frozen=True)
class Built:
    """A network that was built, and what there is to know about it."""

    module: nn.Module = field(repr=False)
    label: str
    """How reports name it: the source as the user wrote it, or the class name."""
    norm: str
    """The norm spec, or ``as is``."""
    notes: tuple[str, ...] = ()
    """What was adapted, refused or left alone."""
    plan: SwapPlan | None = field(default=None, repr=False)
    """The exchange that was made; None where the norm was built in."""


def build(
    source: Source,
    norm: str | Spec | None = None,
    *,
    in_shape: Sequence[int] | None = None,
    classes: int = 10,
    seed: int = 0,
    example: Any = None,
) -> Built:
    """A network with a norm choice, with weights drawn from ``seed``; the global generators stay as they are.

    Reference nets, and factories whose signature has ``norm``, take the norm while they are built. Everything else
    gets it by surgery, with a few samples run through to find what stands around each norm. Lazy layers learn their
    shapes from the same samples.

    Args:
        source: ``resnet56:skipinit=true``, ``timm:resnet18``, ``torchvision:resnet18``, ``path/file.py:factory``,
            ``package.module:factory``, a module (a copy of it is changed, its weights are kept) or a callable. A
            factory gets ``norm``, ``in_shape`` and ``classes`` if its signature names them.
        norm: a norm spec; None or ``as is`` leaves the network as it is. Reference nets then have batch norm.
        in_shape: shape of one sample, (channels, height, width). Named networks take (3, 32, 32) by default.
        classes: outputs of the classifier.
        seed: seed of the weights.
        example: a few samples as the network takes them; standard normal ones of ``in_shape`` by default.

    Raises:
        SourceError: a network that cannot be found, imported or built, with the nearest known names.
        SpecError: an unknown norm or network parameter.
        MissingExtraError: timm or torchvision is needed and not installed.
    """
    spec = None
    if norm is not None and str(norm).strip().lower() != AS_IS:
        spec = str(norms.parse(norm))  # a wrong name is said before anything is built
    shape = _shape(in_shape)
    with seeded(seed):
        if isinstance(source, str):
            return _named(source.strip(), spec, shape, classes, seed, example)
        if isinstance(source, nn.Module):
            return _module(source, spec, _example(example, shape))
        if callable(source):
            name = getattr(source, "__name__", type(source).__name__)
            return _factory(source, name, spec, shape, classes, example)
    raise SourceError(f"a network is {_FORMS}, a module or a callable; got {type(source).__name__}")


def _named(text: str, spec: str | None, shape: tuple[int, ...] | None, classes: int, seed: int, example: Any) -> Built:
    head, _, rest = text.partition(":")
    if head in _ZOOS:
        made, notes = _ZOOS[head](rest, shape or (3, 32, 32), classes)
        return _swapped(made, text, spec, _example(example, shape or (3, 32, 32)), notes)
    if factories.is_file(text):
        return _factory(factories.from_file(text), text, spec, shape, classes, example)
    if head.lower() not in nets.names() and rest and "=" not in rest:
        if "." not in head and get_close_matches(head.lower(), _ZOOS, cutoff=0.7):
            raise SourceError(f"no network {text!r}; {did_you_mean(head, _ZOOS)}")
        return _factory(factories.from_package(text), text, spec, shape, classes, example)
    try:
        nets.parse(text)
    except SpecError as error:
        if head.lower() in nets.names():
            raise
        raise SourceError(f"no network {text!r}: expected {_FORMS}; {did_you_mean(head, nets.names())}") from error
    shape = shape or (3, 32, 32)
    if _has_places(spec):
        made = nets.build(text, "batch", in_shape=shape, classes=classes, seed=seed)
        return _swapped(made, text, spec, _example(example, shape), ["batch norm in the other places"])
    module = nets.build(text, spec or "batch", in_shape=shape, classes=classes, seed=seed)
    return Built(module, text, AS_IS if spec is None else spec)


def _module(source: nn.Module, spec: str | None, example: Any) -> Built:
    inner = getattr(source, "_orig_mod", None)  # what torch.compile wrapped
    source = inner if isinstance(inner, nn.Module) else source
    label = type(source).__name__
    if is_unfinished(source):
        raise SourceError(
            f"{label} has lazy layers that do not know their shapes yet: run one batch through it first, or pass a "
            "function that makes it"
        )
    if spec is None:
        return Built(source, label, AS_IS)
    module = duplicate(
        source, lambda what: SourceError(f"{what}, and surgery must not change yours: pass a function that makes it")
    )
    return _swapped(module, label, spec, example, ["a copy, with the weights it had"])


def _factory(
    factory: Callable[..., Any],
    what: str,
    spec: str | None,
    shape: tuple[int, ...] | None,
    classes: int,
    example: Any,
) -> Built:
    offers: dict[str, Any] = {"classes": classes}
    if spec is not None:
        offers["norm"] = "batch" if _has_places(spec) else spec
    if shape is not None:
        offers["in_shape"] = shape
    module, taken = factories.call(factory, what, offers)
    if spec is not None and "norm" in taken and not _has_places(spec):
        return Built(module, what, spec, ("the norm was handed to the factory",))
    if spec is not None and module in _given_out:
        raise SourceError(f"{what} returned the same network twice: it must make a new one whenever it is called")
    _given_out.add(module)
    return _swapped(module, what, spec, _example(example, shape), [])


def _has_places(spec: str | None) -> bool:
    return spec is not None and norms.recipe(spec).where is not None


def _example(example: Any, shape: tuple[int, ...] | None) -> Any:
    return torch.randn(2, *shape) if example is None and shape is not None else example


def _swapped(module: nn.Module, label: str, spec: str | None, example: Any, notes: list[str]) -> Built:
    if is_unfinished(module) and example is not None:
        try:
            with torch.no_grad():
                inputs.call(module.eval(), example)
        except Exception as error:
            raise SourceError(
                f"{label} has lazy layers, and the samples ({inputs.shapes(example)}) do not run through it: "
                f"{type(error).__name__}: {error}"
            ) from error
        module.train()
        notes.append("its lazy layers took their shapes from the samples")
    if spec is None:
        return Built(module, label, AS_IS, tuple(notes))
    plan = None
    if example is not None:
        try:
            plan = plan_swap(module, spec, example=example)
        except SwapError as error:
            notes.append(f"planned without an example, because {error}")
    plan = plan_swap(module, spec) if plan is None else plan
    applied = plan.apply()
    return Built(applied.model, label, spec, (*notes, *_told(plan)), plan)


def _told(plan: SwapPlan) -> tuple[str, ...]:
    notes = []
    if plan.sites and len(plan.kept) == len(plan.sites):
        notes.append(f"every norm is {plan.spec} already: this is the network as it is")
    elif not plan.swapped:
        notes.append("no norm was exchanged: this is the network as it is")
    if plan.refused:
        reasons = {s.refused: s for s in reversed(plan.refused)}
        first = plan.refused[0]
        more = f" (and {len(reasons) - 1} other reason(s))" if len(reasons) > 1 else ""
        notes.append(
            f"{len(plan.refused)} of {len(plan.sites)} norms were left as they are, such as {first.path!r}: "
            f"{first.refused}{more}"
        )
    adapted = [s for s in plan.swapped if "does not divide" in s.note]
    if adapted:
        example = next(part for part in adapted[0].note.split("; ") if "does not divide" in part)
        notes.append(f"group counts were adapted at {len(adapted)} of {len(plan.swapped)} norms, such as: {example}")
    return (*notes, *plan.notes)


def _shape(in_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if in_shape is None:
        return None
    shape = tuple(in_shape)
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise SourceError(f"in_shape={in_shape!r} is not the shape of one sample, such as (3, 32, 32)")
    return shape
