"""Decide, site by site, what a norm choice means for the module that stands there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

import torch
from torch import nn

from layerscope import norms
from layerscope.errors import LayerscopeError
from layerscope.norms.base import ChannelsFirst1d
from layerscope.spec import Spec
from layerscope.surgery.adapters import Known, is_act
from layerscope.surgery.carry import carry, has_trained_affine
from layerscope.surgery.neighbours import Neighbours, Unknown
from layerscope.surgery.trace import Flow
from layerscope.surgery.wrappers import ChannelsLast, Keep, NormAct

Indivisible = Literal["nearest", "refuse"]


@dataclass(frozen=True)
class Change:
    """One module to be replaced: where it is, what it is, and how to make the new one."""

    path: str
    old: nn.Module
    make: Callable[[], nn.Module]


@dataclass
class Decision:
    """What happens at one site."""

    becomes: str | None = None
    refused: str | None = None
    notes: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def note(self) -> str:
        """All notes as one string."""
        return "; ".join(self.notes)


class Planner:
    """Turns (module, what is known of it) into a :class:`Decision` for one norm choice."""

    def __init__(
        self,
        model: nn.Module,
        spec: norms.Recipe,
        neighbours: Neighbours,
        flow: Flow | None,
        *,
        keep_affine: bool,
        indivisible: Indivisible,
    ) -> None:
        self._asked = spec
        self._neighbours, self._flow = neighbours, flow
        self._keep_affine, self._indivisible = keep_affine, indivisible
        self._like = next((p for p in model.parameters() if p.is_floating_point()), None)

    def decide(self, path: str, module: nn.Module, known: Known) -> Decision:
        """What this norm choice means for this module. Never raises for what is the network's fault: it refuses."""
        decision = Decision()
        if known.refused:
            decision.refused = known.refused
            return decision
        try:
            recipe = self._fit(known.channels, decision)
            if _is_already(recipe, known):
                decision.notes = ["is that already"]
                return decision
            self._norm_slot(path, module, known, recipe, decision)
            if recipe.acts_on_weights:
                self._weight_slot(module, known, recipe, decision)
        except (Unknown, LayerscopeError) as reason:
            return Decision(refused=str(reason))
        if hooks := len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks):
            decision.notes.append(f"its {hooks} hook(s) stay on the old module")
        return decision

    def _fit(self, channels: int, decision: Decision) -> norms.Recipe:
        asked = self._asked.spec
        default = self._asked.info.groups_default
        if default is not None and not {"size", "groups"} & set(asked.kwargs):
            asked = Spec(asked.name, (*asked.params, ("groups", min(default, channels))))
        fitted = norms.adapt(asked, channels)
        if fitted == asked:
            self._asked.group_size(channels)
            return self._asked
        if self._indivisible == "refuse":
            self._asked.group_size(channels)  # raises: the message is the reason
        (key, was), (_, now) = next(
            (a, b) for a, b in zip(asked.params, fitted.params, strict=True) if a != b and a[0] in ("size", "groups")
        )
        decision.notes.append(f"{key}={was} does not divide {channels} channels: {key}={now}")
        return norms.recipe(fitted)

    def _norm_slot(self, path: str, module: nn.Module, known: Known, recipe: norms.Recipe, decision: Decision) -> None:
        fused = known.act if known.act is not None and is_act(known.act) else None
        takes_act = recipe.info.activation is not None
        if takes_act and fused is None:
            found = self._replace_activation(module, known, recipe, decision)
            if not found and recipe.owns_activation and recipe.info.norm is None and not recipe.acts_on_weights:
                raise Unknown(f"no activation follows it, and {recipe.spec} stands in the place of one")
        if recipe.info.norm is None and has_trained_affine(known):
            decision.notes.append("its scale and shift are not one and zero, and are dropped")
        make = self._maker(module, known, recipe, fused if takes_act else None)
        made = make()  # what cannot be built for these channels is a reason to refuse now, not at apply
        self._try(module, made.norm if isinstance(made, NormAct) else made)
        decision.changes.append(Change(path, module, make))
        act = made.act if isinstance(made, NormAct) and is_act(made.act) else None
        decision.becomes = f"{recipe.spec}" + (f" + {type(act).__name__}" if act is not None else "")

    def _maker(
        self, old: nn.Module, known: Known, recipe: norms.Recipe, replaced_act: nn.Module | None
    ) -> Callable[[], nn.Module]:
        is_identity_safe = self._neighbours.only_reader(old) and known.layout != "last"

        def make() -> nn.Module:
            norm = recipe.norm(known.channels)
            if type(norm) is nn.Identity:
                norm = norm if is_identity_safe else Keep()
            else:
                carry(norm, old, known, self._like, self._keep_affine)
                norm = self._laid_out(norm, old, known)
            if is_act(known.drop) or is_act(known.act):
                act = known.act if known.act is not None else nn.Identity()
                if replaced_act is not None:
                    act = self._activation(recipe, known, replaced_act, old)
                norm = NormAct(norm, known.drop if known.drop is not None else nn.Identity(), act)
            # the train flag of this module alone: drop and activation keep their own
            norm.training = old.training
            return norm

        return make

    def _laid_out(self, new: nn.Module, old: nn.Module, known: Known) -> nn.Module:
        """``new``, which reads 3 axes as tokens [N, S, C], reading the channels where ``old`` does."""
        if known.layout == "last":
            return ChannelsLast(new)
        never_3d = bool(known.ndim) and 3 not in known.ndim
        ranks = {len(shape) for shape in self._shapes(old)}
        is_sequence = known.layout == "map" and not never_3d and (not ranks or 3 in ranks)
        return ChannelsFirst1d(new) if is_sequence else new

    def _shapes(self, module: nn.Module) -> list[tuple[int, ...]]:
        return [call.in_shape for call in self._flow.calls(module)] if self._flow is not None else []

    def _try(self, old: nn.Module, new: nn.Module) -> None:
        """Run a new layer once on the shapes that the old one saw in the example.

        Raises:
            LayerscopeError: its statistics cannot be taken there, such as over the positions of a vector.
        """
        like = next((t for t in (*new.parameters(), *old.parameters()) if t.is_floating_point()), self._like)
        if like is not None and like.is_meta:
            return
        trial = copy.deepcopy(new).train()
        with torch.no_grad():
            for shape in dict.fromkeys(self._shapes(old)):
                x = torch.randn(max(shape[0], 2), *shape[1:])
                trial(x if like is None else x.to(like))

    def _activation(self, recipe: norms.Recipe, known: Known, old: nn.Module, near: nn.Module) -> nn.Module:
        """The norm's own activation in place of ``old``, on the device and in the dtype of the norm beside it."""
        new = self._laid_out(recipe.activation(known.channels, lambda: copy.deepcopy(old)), near, known)
        like = next((t for t in (*near.parameters(), *near.buffers()) if t.is_floating_point()), self._like)
        if like is not None:
            new.to(device=like.device, dtype=like.dtype)
        return new.train(old.training)

    def _replace_activation(self, module: nn.Module, known: Known, recipe: norms.Recipe, decision: Decision) -> bool:
        found = self._neighbours.activation_after(module)
        if found is None:
            decision.notes.append("no activation follows")
            return False
        path, act = found
        change = Change(path, act, lambda: self._activation(recipe, known, act, module))
        made = change.make()
        self._try(module, made)
        decision.changes.append(change)
        inner = getattr(made, "norm", getattr(made, "layer", made))
        decision.notes.append(f"{type(act).__name__} {path!r} becomes {type(inner).__name__}")
        return True

    def _weight_slot(self, module: nn.Module, known: Known, recipe: norms.Recipe, decision: Decision) -> None:
        layers = self._neighbours.layers_before(module)
        shift = known.bias if self._keep_affine and len(layers) == 1 else None
        for path, layer in layers:
            change = Change(path, layer, partial(_wrapped, layer, recipe, shift))
            change.make()
            decision.changes.append(change)
        if not layers:
            decision.notes.append("no layer stands between it and the norm or activation before it")
            return
        first = repr(layers[0][0])
        several = f"the {len(layers)} layers that make up its input are normalized instead, such as {first}"
        decision.notes.append(several if len(layers) > 1 else f"the weight of {first} is normalized instead")


def _wrapped(layer: nn.Module, recipe: norms.Recipe, shift: torch.Tensor | None) -> nn.Module:
    """A copy of a layer with the recipe's weight, and with a bias where nothing else shifts any more."""
    new = copy.deepcopy(layer)
    weight = cast("nn.Parameter", new.weight)
    if recipe.needs_bias and getattr(new, "bias", None) is None:
        out = cast("int", getattr(layer, "out_channels", None) or getattr(layer, "out_features", 0))
        bias = torch.zeros(out, dtype=weight.dtype, device=weight.device)
        if shift is not None and shift.numel() == out:
            bias = shift.detach().to(bias).clone()
        new.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    return recipe.weight(new)


def _is_already(recipe: norms.Recipe, known: Known) -> bool:
    """Whether the module computes what is asked for: leaving it alone is the smallest change."""
    if known.family is None or _reaches_further(recipe):
        return False
    have, want = norms.parse(known.family), recipe.spec
    if have.name != want.name:
        return have.name == "group" and want.name == "layer" and not want.params and have.kwargs.get("groups") == 1
    if have.name != "group":
        return not want.params
    only_grouping = {key for key, _ in want.params} <= {"size", "groups"}
    return only_grouping and recipe.group_size(known.channels) == norms.recipe(have).group_size(known.channels)


def _reaches_further(recipe: norms.Recipe) -> bool:
    """Whether the choice reaches into the slots around the norm."""
    return recipe.info.activation is not None or recipe.acts_on_weights
