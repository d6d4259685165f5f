"""Run an example once and note which module or function made each tensor and which ones read it.

Surgery needs this where a norm choice is more than one module: to give a weight normalization to the convolution
*before* the norm slot, or to replace the activation *after* it. A neighbour counts as found only when the very tensor
object is handed over and nobody else reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layerscope import inputs
from layerscope._attributes import Attributes, put_back
from layerscope.errors import SwapError

FUNCTIONAL_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})


@dataclass(frozen=True)
class Step:
    """One execution of a module (an atom: a site or a module without children) or of a function outside of atoms."""

    name: str
    """Class or function name."""
    path: str
    """Path of the module, or of the module in whose forward the function was called."""
    module: nn.Module | None
    """The module, or None for a function."""
    inputs: tuple[int, ...]
    """Numbers of the tensors it read."""
    outputs: tuple[int, ...]
    """Numbers of the tensors it made; a tensor that is overwritten in place gets a new number."""
    in_shape: tuple[int, ...]
    """Shape of the first tensor it read."""

    def __str__(self) -> str:
        return (
            f"{self.name} {self.path!r}" if self.module is not None else f"{self.name}() in {self.path or 'forward'!r}"
        )


@dataclass(frozen=True)
class Flow:
    """The steps of one forward pass, in execution order."""

    steps: tuple[Step, ...]
    results: frozenset[int]
    """Numbers of the tensors that the network returns."""

    @cached_property
    def _makers(self) -> dict[int, Step]:
        return {number: step for step in self.steps for number in step.outputs}

    @cached_property
    def _readers(self) -> dict[int, list[Step]]:
        readers: dict[int, list[Step]] = defaultdict(list)
        for step in self.steps:
            for number in dict.fromkeys(step.inputs):
                readers[number].append(step)
        return readers

    @cached_property
    def _calls(self) -> dict[int, list[Step]]:
        calls: dict[int, list[Step]] = defaultdict(list)
        for step in self.steps:
            calls[id(step.module)].append(step)
        return calls

    def calls(self, module: nn.Module) -> list[Step]:
        """The executions of this module."""
        return self._calls.get(id(module), [])

    def maker(self, number: int) -> Step | None:
        """The step that made this tensor; None for what came from outside (the network's input, its parameters)."""
        return self._makers.get(number)

    def readers(self, number: int) -> list[Step]:
        """The steps that read this tensor."""
        return self._readers.get(number, [])


def trace(model: nn.Module, example: Any, atoms: set[int]) -> Flow:
    """Run ``model`` on ``example`` in eval mode, without gradients, and record the data flow.

    Parameters, buffers, train flags, hooks and the random generators are the same afterwards.

    Args:
        model: the network.
        example: a tensor, or a tuple or dict of several inputs; brought to the network's device and dtype.
        atoms: ids of modules that count as one step although they have children (fused norm+activation classes).

    Raises:
        SwapError: the network cannot be run on the example.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    args, kwargs = inputs.arguments(model, inputs.placed(example, like.device, like.dtype))
    watch = _Watch(model, atoms)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index})
    with _unchanged(model), torch.no_grad(), torch.random.fork_rng(devices), watch.hooks():
        try:
            with watch:
                result = model(*args, **kwargs)
        except Exception as error:
            where = f" in {watch.stack[-1]!r}" if watch.stack else ""
            raise SwapError(
                f"the example does not run through {type(model).__name__}{where}: {type(error).__name__}: {error}"
            ) from error
    return Flow(tuple(watch.steps), frozenset(watch.number(t) for t in tensors(result)))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside tuples, lists, dicts and dataclasses, in order."""
    return (tensor for _, tensor in inputs.named(value))


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, atoms: set[int]) -> None:
        super().__init__()
        self.model = model
        self.atoms = atoms
        self.steps: list[Step] = []
        self.stack: list[str] = []
        self._depth = 0  # of nested atoms: what happens inside one is its own business
        self._numbers: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is used twice
        self._versions: list[dict[int, int]] = []

    def number(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self._numbers:
            self.renumber(tensor)
        return self._numbers[id(tensor)]

    def renumber(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        self._numbers[id(tensor)] = len(self._alive)
        return len(self._alive)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._depth:
            return func(*args, **(kwargs or {}))
        before = {id(t): t._version for t in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.record(getattr(func, "__name__", str(func)), None, (args, kwargs), result, before)
        return result

    def record(self, name: str, module: nn.Module | None, given: Any, result: Any, before: dict[int, int]) -> None:
        made = list(tensors(result))
        if not made or all(before.get(id(t)) == t._version for t in made):
            return  # metadata, or the input itself handed through untouched (Identity, dropout at eval)
        read = list(tensors(given))
        read_numbers = tuple(self.number(t) for t in read)
        outputs = tuple(self.renumber(t) for t in made)
        shape = tuple(read[0].shape) if read else ()
        self.steps.append(Step(name, self.stack[-1] if self.stack else "", module, read_numbers, outputs, shape))

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as handles:
            for path, module in self.model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks
                is_leaf = all(name == "parametrizations" for name, _ in module.named_children())
                is_atom = id(module) in self.atoms or is_leaf
                for handle in self._attach(path, module, is_atom):
                    handles.callback(handle.remove)
            yield

    def _attach(self, path: str, module: nn.Module, is_atom: bool) -> tuple[Any, Any]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(path)
            if is_atom:
                self._depth += 1
                self._versions.append({id(t): t._version for t in tensors((args, kwargs))})

        def leave(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if is_atom:
                self._depth -= 1
                before = self._versions.pop()
                if self._depth == 0:
                    self.record(type(module).__name__, module, (args, kwargs), result, before)
            self.stack.pop()

        return (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        )


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    attributes = Attributes(m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule))
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    flags = [(m, m.training) for m in model.modules()]
    for module in model.modules():
        module.training = False
    try:
        yield
    finally:
        attributes.restore()
        for module, flag in flags:
            module.training = flag
        for buffer, saved in buffers:
            put_back(buffer, saved)
