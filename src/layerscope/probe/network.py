"""The network, checked before anything runs and listed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from layerscope.errors import ProbeError


@dataclass(frozen=True)
class Network:
    """A module and what every part of the probe asks of it, collected in one walk."""

    model: nn.Module
    modules: tuple[tuple[str, nn.Module], ...]
    """Path (the root's is empty) and module, each module once."""
    parameters: tuple[nn.Parameter, ...]
    device: torch.device
    dtype: torch.dtype
    has_cuda: bool

    @property
    def name(self) -> str:
        """Class name of the root; also what the root is called where a path is needed."""
        return type(self.model).__name__

    @property
    def takes_ids(self) -> bool:
        """Whether integer inputs make sense: there is an embedding."""
        return any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for _, m in self.modules)


def open_network(model: Any, device: str | torch.device | None = None) -> Network:
    """The eager module, checked.

    Args:
        model: what the caller gave.
        device: where the caller expects it; None: wherever it is.

    Raises:
        ProbeError: not a module, wrapped for distribution, scripted, not initialized, or not on ``device``.
    """
    if not isinstance(model, nn.Module):
        raise ProbeError(f"expected a torch.nn.Module, got {type(model).__name__}; build the network first")
    if isinstance(model, torch.jit.ScriptModule):
        raise ProbeError("a scripted module runs outside Python and cannot be watched; pass the original module")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ProbeError(f"{type(model).__name__} hides the layers: pass  model.module  instead")
    inner = getattr(model, "_orig_mod", None)
    model = inner if isinstance(inner, nn.Module) else model
    modules = tuple(model.named_modules())
    parameters = tuple({id(p): p for _, m in modules for p in m._parameters.values() if p is not None}.values())
    tensors: list[Tensor] = [*parameters, *(b for _, m in modules for b in m._buffers.values() if b is not None)]
    if any(is_lazy(t) for t in tensors):
        raise ProbeError("the model has lazy layers that do not know their shape yet: run one batch through it first")
    if any(t.is_meta for t in tensors):
        raise ProbeError(
            "the model is on the meta device, where tensors hold no values: build it on the CPU, or call "
            "model.to_empty(device='cpu') and initialize it"
        )
    devices = {t.device: None for t in tensors} or {torch.device("cpu"): None}
    at = next(iter(devices))
    if device is not None:
        wanted = check_device(device)
        if wanted.type != at.type or (wanted.index is not None and wanted.index != at.index):
            raise ProbeError(f"the model is on {at}, not on {wanted}: move it first with model.to('{wanted}')")
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    return Network(model, modules, parameters, at, dtype, any(d.type == "cuda" for d in devices))


def check_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; the CPU for None.

    Raises:
        ProbeError: there is no such device, or it is not available here.
    """
    try:
        wanted = torch.device(device or "cpu")
    except RuntimeError as error:
        raise ProbeError(f"{device!r} is not a device: use 'cpu', 'cuda' or 'cuda:0'") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ProbeError(f"device {str(wanted)!r} was asked for, but CUDA is not available here: use device='cpu'")
    return wanted
