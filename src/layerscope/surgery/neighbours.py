"""The layers before a norm and the activation after it: found for sure, or a reason why not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from layerscope.surgery.activations import is_activation
from layerscope.surgery.adapters import describe
from layerscope.surgery.trace import Flow, Step

NO_EXAMPLE = "its neighbours are not known: pass example=, a batch to run through the network once"
#: What a residual connection is called where it is a function.
_ADDS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_FUNCTIONAL_ACTS = frozenset(
    {
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish",
        "hardswish", "hardtanh", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "hardsigmoid", "prelu",
        "clamp", "clamp_", "clamp_min", "clamp_min_",
    }
)  # fmt: skip
#: What may stand between a weight and the norm it feeds: sums, products, joins, pools and rearrangements.
_PASSES = _ADDS | {
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "cat", "concat", "stack", "chunk", "split", "__getitem__",
    "flatten", "reshape", "view", "permute", "transpose", "movedim", "contiguous", "expand", "pad", "roll",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "boolean_dispatch", "mean",
}  # fmt: skip
_POOLS = (
    "torch.nn.modules.pooling", "torch.nn.modules.dropout", "torch.nn.modules.flatten", "torch.nn.modules.padding",
    "torch.nn.modules.upsampling", "timm.layers.blur_pool", "timm.layers.pool2d_same",
)  # fmt: skip

Found = tuple[str, nn.Module]


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
        calls = self._flow.calls(norm) if self._flow is not None else []
        if self._flow is None or not calls:
            return False
        # what nobody in the network made belongs to the caller
        return all(len(self._flow.readers(c.inputs[0])) == 1 and self._flow.maker(c.inputs[0]) for c in calls)

    def layers_before(self, norm: nn.Module) -> list[Found]:
        """Path and module of the convolutions and linear layers that this norm normalizes.

        Usually the one before it. Where its input is a sum, a concatenation or a pool (pre-activation blocks), the
        layers that it is made of, back to the previous norms and activations. Empty where no layer stands between it
        and those.

        Raises:
            Unknown: it reads the network's own input, or a layer cannot be named for sure.
        """
        if self._flow is None:
            sibling = self._sibling(norm, -1)
            if sibling is None:
                raise Unknown(NO_EXAMPLE)
            return [self._as_layer(sibling)]
        todo, seen, found = [self._one_call(norm).inputs[0]], set[int](), dict[str, nn.Module]()
        from_outside = False
        while todo:
            number = todo.pop()
            step = self._flow.maker(number)
            from_outside |= step is None
            if number in seen or step is None:
                continue
            seen.add(number)
            if step.module is None and step.name in _PASSES:
                todo += step.inputs
            elif step.module is None:
                raise Unknown(f"its input is made by {step}, not by a convolution or linear layer")
            elif type(step.module).__module__ in _POOLS:
                todo += step.inputs
            elif not is_activation(step.module) and describe(step.module) is None:
                path, layer = self._as_layer(step.module)
                if len(self._flow.calls(layer)) > 1:
                    raise Unknown(f"the layer before it, {path!r}, is called more than once")
                found[path] = layer
        if from_outside and not found:
            raise Unknown(
                "it reads the network's own input: there is no layer before it whose weight could be normalized"
            )
        return list(found.items())

    def activation_after(self, norm: nn.Module) -> Found | None:
        """Path and module of the activation that reads this norm, directly or behind a residual addition.

        Returns:
            None if surely none follows.

        Raises:
            Unknown: it is a function, is shared between several places, or cannot be named for sure.
        """
        if self._flow is None:
            sibling = self._sibling(norm, +1)
            if sibling is None:
                raise Unknown(NO_EXAMPLE)
            return (self._paths[id(sibling)][0], sibling) if is_activation(sibling) else None
        step = self._one_call(norm)
        for _ in range(2):  # the norm itself, then the addition it feeds
            readers = self._flow.readers(step.outputs[0])
            acts = [r for r in readers if _activates(r)]
            others = len(readers) - 1 + (step.outputs[0] in self._flow.results)
            if acts and others:
                raise Unknown(f"its activation {acts[0]} is not the only one that reads it")
            if acts:
                return self._as_activation(acts[0])
            if others or not readers or readers[0].name not in _ADDS:
                return None
            step = readers[0]
        return None

    def _as_activation(self, step: Step) -> Found:
        assert self._flow is not None
        if step.module is None:
            raise Unknown(f"its activation is a function, {step}, which cannot be replaced from outside")
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

    def _as_layer(self, module: nn.Module) -> Found:
        path, kind = self._paths[id(module)][0], type(module).__name__
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            raise Unknown(f"its input comes from {kind} {path!r}, not from a convolution or linear layer")
        if "Std" in kind or hasattr(module, "parametrizations"):
            raise Unknown(f"the weight of {path!r} ({kind}) is reparametrized already")
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
