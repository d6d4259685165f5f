"""A norm choice is more than one module: what it puts into the weight, norm and activation slots. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

from layerscope.errors import LayerscopeError, SpecError
from layerscope.norms.facts import NormInfo, Slot, load
from layerscope.norms.grouping import resolve_group_size
from layerscope.spec import Spec, Value

if TYPE_CHECKING:
    from torch import nn

M = TypeVar("M", bound="nn.Module")


@dataclass(frozen=True)
class Recipe:
    """What choosing a norm changes in a network, slot by slot.

    ::

        r = norms.recipe("frn")
        conv = r.weight(nn.Conv2d(3, 64, 3, bias=r.needs_bias))
        block = nn.Sequential(conv, r.norm(64), r.activation(64))
    """

    spec: Spec
    info: NormInfo = field(repr=False)

    def norm(self, channels: int) -> nn.Module:
        """The norm slot; an identity for ``none``, for norms of weights and for EvoNorm.

        Raises:
            SpecError: fewer than one channel, channels that the groups do not divide, or a spec with ``where``.
        """
        from torch import nn

        self._check(channels)
        if self.where is not None:
            raise SpecError(
                f"{self.spec} names places in a network, and this is one layer: hand it to surgery.plan_swap, "
                "sources.build or layerscope compare"
            )
        if self.info.norm is None:
            return nn.Identity()
        try:
            made = load(self.info.norm)(channels, **self._kwargs("norm"))
        except LayerscopeError:
            raise
        except Exception as error:  # a layer of the user's own
            raise SpecError(
                f"norm {str(self.spec)!r} cannot be built for {channels} channels: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(made, nn.Module):
            raise SpecError(f"norm {str(self.spec)!r} built a {type(made).__name__}, not a torch.nn.Module")
        return made

    def activation(self, channels: int, base: Callable[[], nn.Module] | None = None) -> nn.Module:
        """The activation slot: ``base()`` (ReLU unless given), or what the norm puts in its place."""
        from torch import nn

        self._check(channels)
        base = nn.ReLU if base is None else base
        if self.info.activation is None:
            return base()
        return cast("nn.Module", load(self.info.activation)(channels, base, **self._kwargs("activation")))

    def weight(self, layer: M) -> M:
        """The same convolution or linear layer, its weight reparametrized where the norm acts on weights."""
        if self.info.weight is None:
            return layer
        return cast("M", load(self.info.weight)(layer, **self._kwargs("weight")))

    @property
    def where(self) -> str | None:
        """The places in a network that the spec names (``mixture:k=3,where=2nd``); None for all."""
        given = self.spec.kwargs.get("where", "all")
        return None if given == "all" or self.info.param("where") is None else str(given)

    def everywhere(self) -> Recipe:
        """The same choice without its places."""
        return Recipe(Spec(self.spec.name, tuple(p for p in self.spec.params if p[0] != "where")), self.info)

    @property
    def needs_bias(self) -> bool:
        """The layer before the slot keeps its bias, because no shift follows."""
        return self.info.needs_bias

    @property
    def owns_activation(self) -> bool:
        """The activation slot holds the norm's own module instead of the plain activation."""
        return self.info.owns_activation

    @property
    def uses_batch(self) -> bool:
        """In training mode, the output of a sample depends on the other samples of its batch."""
        return self.info.uses_batch

    @property
    def acts_on_weights(self) -> bool:
        """:meth:`weight` changes the layer it is given."""
        return self.info.weight is not None

    def group_size(self, channels: int) -> int | None:
        """Channels that share one per-sample statistic: all for LN, 1 for IN; None where there is no such statistic.

        Raises:
            SpecError: the groups do not divide the channels.
        """
        if self.info.grouping == "given":
            size, groups = self._group_arguments(channels)
            return resolve_group_size(channels, size=size, groups=groups, name=self.spec.name)
        return {"all": channels, "one": 1, None: None}[self.info.grouping]

    def _check(self, channels: int) -> None:
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise SpecError(f"{self.spec} needs a whole number of channels, at least 1; got {channels!r}")
        self.group_size(channels)

    def _group_arguments(self, channels: int) -> tuple[int | None, int | None]:
        given = self.spec.kwargs
        size, groups = given.get("size"), given.get("groups")
        if size is None and groups is None and self.info.groups_default is not None:
            groups = min(self.info.groups_default, channels)
        return cast("int | None", size), cast("int | None", groups)

    def _kwargs(self, slot: Slot) -> dict[str, Value]:
        given = self.spec.kwargs
        return {p.name: given[p.name] for p in self.info.params if p.name in given and slot in p.slots}
