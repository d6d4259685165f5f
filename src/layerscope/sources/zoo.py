"""Networks by name from timm and torchvision, with random weights; both packages are optional."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from layerscope.errors import MissingExtraError, SourceError, SpecError, did_you_mean
from layerscope.spec import Spec, parse_spec
from layerscope.surgery import exchange

Made = tuple[nn.Module, list[str]]

#: Operators that torchvision's Python code names while it is imported.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators cannot be loaded.

    The package index serves torchvision's CUDA build. Beside a CPU-only torch its operator library does not load, and
    ``import torchvision`` then fails with "operator torchvision::nms does not exist", because its Python code registers
    shape functions for operators that nobody declared; timm imports torchvision and fails with it. Classification
    networks use none of these operators. So, only if the operator library is there and does not load, their
    *signatures* are declared through ``torch.library`` before the import. Nothing is declared where torchvision works
    or has been imported already, and calling such an operator still raises.

    Raises:
        MissingExtraError: torchvision is not installed.
        SourceError: torchvision does not import for another reason.
    """
    if "torchvision" not in sys.modules:
        found = find_spec("torchvision")
        if found is None or found.origin is None:
            raise MissingExtraError("torchvision", "zoo", "a torchvision network")
        if not _libraries and not _operators_load(Path(found.origin).parent):
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's own
            for schema in _SCHEMAS:
                library.define(schema)  # type: ignore[no-untyped-call]  # as above
            _libraries.append(library)  # the declarations live as long as this object
    try:
        return import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise SourceError(
            f"torchvision is installed but cannot be imported ({error}): install the build that belongs to torch "
            f"{torch.__version__}, from the same index as torch"
        ) from error


def _operators_load(folder: Path) -> bool:
    """Whether torchvision's compiled operators can be loaded, by the same call that torchvision makes itself."""
    libraries = [p for p in folder.glob("_C*") if p.suffix in (".so", ".pyd", ".dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]  # torch's own
    except (ImportError, OSError):
        return False
    return bool(libraries)


def import_timm() -> ModuleType:
    """Import timm, with torchvision's trap taken care of.

    Raises:
        MissingExtraError: timm is not installed.
    """
    if find_spec("timm") is None:
        raise MissingExtraError("timm", "zoo", "a timm network")
    import_torchvision()
    return import_module("timm")


def timm_network(text: str, in_shape: tuple[int, ...], classes: int) -> Made:
    """``timm:name`` or ``timm:name:key=value``: built by timm with random weights for this input and class count."""
    timm = import_timm()
    spec = _parse(text, "timm")
    name = spec.name.partition(".")[0]
    if not timm.is_model(name):
        raise SourceError(
            f"timm {timm.__version__} has no model {spec.name!r}; {did_you_mean(name, timm.list_models())}"
        )
    options: dict[str, Any] = {"in_chans": in_shape[0], "num_classes": classes, **spec.kwargs}
    notes: list[str] = []
    known = timm.models.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size and "img_size" not in options:
        options["img_size"] = tuple(in_shape[1:])
        notes.append(f"built for images of {in_shape[1]}x{in_shape[2]}")
    return _call(timm.create_model, (name,), options, f"timm:{text}"), notes


def torchvision_network(text: str, in_shape: tuple[int, ...], classes: int) -> Made:
    """``torchvision:name`` or ``torchvision:name:key=value``, a classification model with random weights."""
    models = import_torchvision().models
    spec = _parse(text, "torchvision")
    known = models.list_models(module=models)
    if spec.name not in known:
        raise SourceError(f"torchvision has no classification model {spec.name!r}; {did_you_mean(spec.name, known)}")
    options: dict[str, Any] = {"num_classes": classes, "weights": None, **spec.kwargs}
    notes: list[str] = []
    if spec.name in ("inception_v3", "googlenet"):
        # its training mode returns a tuple otherwise, and not saying how to draw the weights is deprecated
        options = {"aux_logits": False, "init_weights": True, **options}
        notes.append("built without its auxiliary classifiers")
    if spec.name.startswith("vit_"):
        options = {"image_size": in_shape[1], **options}
    module = _call(models.get_model, (spec.name,), options, f"torchvision:{text}")
    if in_shape[0] != 3:
        notes.append(_first_convolution(module, in_shape[0], text))
    return module, notes


def _first_convolution(module: nn.Module, channels: int, text: str) -> str:
    """Rebuild the first convolution for another number of input channels: torchvision's models are fixed to three."""
    first = next(((p, m) for p, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first[1].in_channels != 3:
        raise SourceError(f"torchvision:{text} takes 3 channels and has no first convolution to adapt to {channels}")
    path, old = first
    options = {k: getattr(old, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    exchange(module, {path: nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **options)})
    return f"its first convolution {path!r} was rebuilt for {channels} input channel(s)"


def _call(function: Any, args: tuple[Any, ...], options: dict[str, Any], what: str) -> nn.Module:
    try:
        module = function(*args, **options)
    except Exception as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise SourceError(f"{what} cannot be built with {shown}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise SourceError(f"{what} built a {type(module).__name__}, not a torch.nn.Module")
    return module


def _parse(text: str, zoo: str) -> Spec:
    try:
        return parse_spec(text)
    except SpecError as error:
        raise SourceError(f"{zoo}:{text}: expected  {zoo}:name  or  {zoo}:name:key=value ({error})") from error
