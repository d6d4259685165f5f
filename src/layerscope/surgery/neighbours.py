"""The layer before a norm and the activation after it: found for sure, or a reason why not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from layerscope.surgery.activations import is_activation
from layerscope.surgery.trace import Flow, Step

#: What a residual connection is called where it is a function.
_ADDS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_FUNCTIONAL_ACTS = frozenset(
    {
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish",
        "hardswish", "hardtanh", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "hardsigmoid", "prelu",
        "clamp", "clamp_", "clamp_min", "clamp_min_",
    }
)  # fmt: skip
NO_EXAMPLE = "its neighbours are not known: pass example=, a batch to run through the network once"


class Unknown(Exception):
    """A neighbour that cannot be named for sure; the message is the reason for the plan."""


class Neighbours:
    """Looks up what stands around a norm, by data flow if there is a trace, else inside plain ``nn.Sequential``."""

    def __init__(
        self, paths: Mapping[int, tuple[str, ...]], modules: Mapping[str, nn.Module], flow: Flow | None
    ) -> None:
        self._paths, self._modules, self._flow = paths, modules, flow

    def only_reader(self, norm: nn.Module) -> bool:
        """Whether nothing but this norm reads its input, so that an in-place operation after it does no harm."""
        if self._flow is None:
            return False
        for call in self._flow.calls(norm):
            if not call.inputs or sum(call.inputs[0] in s.inputs for s in self._flow.steps) != 1:
                return False
            if self._flow.producer(call) is None:  # the network's own input belongs to the caller
                return False
        return bool(self._flow.calls(norm))

    def layer_before(self, norm: nn.Module) -> tuple[str, nn.Module]:
        """Path and module of the convolution or linear layer whose output only this norm reads.

        Raises:
            Unknown: there is none, or it cannot be named for sure.
        """
        if self._flow is None:
            found = self._sibling(norm, -1)
            if found is None:
                raise Unknown(NO_EXAMPLE)
            return self._as_layer(found)
        call = self._one_call(norm)
        step = self._flow.producer(call)
        if step is None:
            raise Unknown("it reads the network's input: there is no layer before it that could carry the weight norm")
        if step.module is None:
            raise Unknown(f"its input comes from {step}, not from a convolution or linear layer")
        if len(self._flow.calls(step.module)) > 1:
            raise Unknown(f"the layer before it, {step}, is called more than once")
        if len(self._flow.consumers(step)) > 1 or self._flow.returned(step):
            raise Unknown(f"the output of {step} is read by others as well")
        return self._as_layer(step.module)

    def activation_after(self, norm: nn.Module) -> tuple[str, nn.Module] | None:
        """Path and module of the activation that reads this norm, directly or behind a residual addition.

        Returns:
            None if surely none follows.

        Raises:
            Unknown: it is a function, is shared between several places, or cannot be named for sure.
        """
        if self._flow is None:
            found = self._sibling(norm, +1)
            if found is None:
                raise Unknown(NO_EXAMPLE)
            return (self._paths[id(found)][0], found) if is_activation(found) else None
        step = self._one_call(norm)
        for _ in range(2):  # the norm itself, then the addition it feeds
            readers = self._flow.consumers(step)
            if not any(_activates(r) or r.name in _ADDS for r in readers):
                return None
            if len(readers) > 1 or self._flow.returned(step):
                raise Unknown(f"{len(readers)} places read it ({', '.join(map(str, readers[:3]))})")
            step = readers[0]
            if step.module is None and step.name in _FUNCTIONAL_ACTS:
                raise Unknown(f"its activation is a function, {step}, which cannot be replaced from outside")
            if step.module is not None:
                return self._as_activation(step)
        return None

    def _as_activation(self, step: Step) -> tuple[str, nn.Module]:
        assert self._flow is not None
        assert step.module is not None
        calls = len(self._flow.calls(step.module))
        if calls > 1:
            raise Unknown(f"its activation {step.path!r} is one module called {calls} times, at different places")
        return step.path, step.module

    def _one_call(self, norm: nn.Module) -> Step:
        assert self._flow is not None
        calls = self._flow.calls(norm)
        if len(calls) != 1:
            raise Unknown("the example does not execute it" if not calls else f"it is called {len(calls)} times")
        return calls[0]

    def _as_layer(self, module: nn.Module) -> tuple[str, nn.Module]:
        path = self._paths[id(module)][0]
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            raise Unknown(
                f"its input comes from {type(module).__name__} {path!r}, not from a convolution or linear layer"
            )
        if "Std" in type(module).__name__ or hasattr(module, "parametrizations"):
            raise Unknown(f"the weight of {path!r} ({type(module).__name__}) is reparametrized already")
        return path, module

    def _sibling(self, norm: nn.Module, step: int) -> nn.Module | None:
        """The neighbour in a plain Sequential, past identities; None where that cannot be told."""
        if len(self._paths[id(norm)]) != 1:
            return None
        parent_path, _, name = self._paths[id(norm)][0].rpartition(".")
        parent = self._modules[parent_path]
        if type(parent).forward is not nn.Sequential.forward or not name:
            return None
        children = list(parent._modules.items())
        at = next(i for i, (key, _) in enumerate(children) if key == name) + step
        while 0 <= at < len(children):
            child = children[at][1]
            if child is not None and type(child) is not nn.Identity:
                return child if len(self._paths[id(child)]) == 1 else None
            at += step
        return None


def _activates(step: Step) -> bool:
    return step.name in _FUNCTIONAL_ACTS if step.module is None else is_activation(step.module)
