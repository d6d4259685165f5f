"""Decide, site by site, what a norm choice means for the module that stands there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import nn

from layerscope import norms
from layerscope.errors import LayerscopeError
from layerscope.surgery.adapters import Known, is_act
from layerscope.surgery.carry import carry, has_trained_affine
from layerscope.surgery.neighbours import Neighbours, Unknown
from layerscope.surgery.trace import Flow
from layerscope.surgery.wrappers import AsMap, ChannelsLast, Keep, NormAct

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
        fused = known.act if is_act(known.act) else None
        takes_act = recipe.info.activation is not None
        own_act: nn.Module | None = None
        if takes_act and fused is None:
            own_act = self._replace_activation(module, known, recipe, decision)
        elif takes_act and fused is not None and _keeps(recipe, fused):
            decision.notes.append(_constants(fused))
            takes_act = False
        if recipe.info.norm is None and recipe.owns_activation and fused is None and own_act is None:
            raise Unknown(f"no activation follows it, and {recipe.spec} stands in the place of one")
        if _drops_affine(recipe) and has_trained_affine(known):
            decision.notes.append("its scale and shift are not one and zero, and are dropped")
        make = self._maker(module, known, recipe, fused if takes_act else None)
        make()  # a spec that cannot be built for these channels is a reason to refuse, now and not at apply
        decision.changes.append(Change(path, module, make))
        act = type(fused).__name__ if fused is not None else None
        if fused is not None and takes_act:
            act = type(recipe.activation(known.channels, lambda: fused)).__name__
        decision.becomes = f"{recipe.spec}" + (f" + {act}" if act else "")

    def _maker(
        self, old: nn.Module, known: Known, recipe: norms.Recipe, replaced_act: nn.Module | None
    ) -> Callable[[], nn.Module]:
        never_3d = bool(known.ndim) and 3 not in known.ndim
        shapes = [len(c.in_shape) for c in self._flow.calls(old)] if self._flow is not None else []
        safe_input = self._neighbours.only_reader(old)

        def make() -> nn.Module:
            norm = recipe.norm(known.channels)
            if type(norm) is nn.Identity:
                norm = norm if safe_input else Keep()
            else:
                carry(norm, old, known, self._like, self._keep_affine)
                if known.layout == "last":
                    norm = ChannelsLast(norm)
                elif not never_3d and (not shapes or 3 in shapes):
                    norm = AsMap(norm)
            if is_act(known.drop) or is_act(known.act):
                act = known.act if known.act is not None else nn.Identity()
                if replaced_act is not None:
                    act = self._settled(recipe.activation(known.channels, lambda: replaced_act), replaced_act, old)
                norm = NormAct(norm, known.drop if known.drop is not None else nn.Identity(), act)
            # the train flag of this module alone: drop and activation keep their own
            norm.training = old.training
            return norm

        return make

    def _settled(self, new: nn.Module, old_act: nn.Module, near: nn.Module) -> nn.Module:
        like = next((t for t in (*near.parameters(), *near.buffers()) if t.is_floating_point()), self._like)
        if like is not None:
            new.to(device=like.device, dtype=like.dtype)
        return new.train(old_act.training)

    def _replace_activation(
        self, module: nn.Module, known: Known, recipe: norms.Recipe, decision: Decision
    ) -> nn.Module | None:
        found = self._neighbours.activation_after(module)
        if found is None:
            if recipe.info.norm is not None or recipe.acts_on_weights:
                decision.notes.append("no activation follows")
            return None
        path, act = found
        if _keeps(recipe, act):
            decision.notes.append(_constants(act))
            return act

        def make() -> nn.Module:
            return self._settled(recipe.activation(known.channels, lambda: act), act, module)

        make()
        decision.changes.append(Change(path, act, make))
        decision.notes.append(f"{type(act).__name__} {path!r} becomes {type(make()).__name__}")
        return act

    def _weight_slot(self, module: nn.Module, known: Known, recipe: norms.Recipe, decision: Decision) -> None:
        path, layer = self._neighbours.layer_before(module)
        out = cast("int", getattr(layer, "out_channels", None) or getattr(layer, "out_features", 0))
        shift = known.bias if self._keep_affine and known.bias is not None and known.bias.numel() == out else None

        def make() -> nn.Module:
            new = copy.deepcopy(layer)
            if recipe.needs_bias and getattr(new, "bias", None) is None:
                weight = cast("nn.Parameter", new.weight)
                bias = torch.zeros(out, dtype=weight.dtype, device=weight.device) if shift is None else shift.detach()
                new.bias = nn.Parameter(bias.clone(), requires_grad=weight.requires_grad)
            return recipe.weight(new)

        make()
        decision.changes.append(Change(path, layer, make))
        decision.notes.append(f"the weight of {path!r} is normalized instead")


def _keeps(recipe: norms.Recipe, act: nn.Module) -> bool:
    """Whether the activation stays: a norm with a rescaled ReLU has constants for ReLU only."""
    return not recipe.owns_activation and type(act) is not nn.ReLU


def _constants(act: nn.Module) -> str:
    return f"{type(act).__name__} stays as it is: the rescaled activation of this norm is known for ReLU only"


def _drops_affine(recipe: norms.Recipe) -> bool:
    return recipe.info.norm is None


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
