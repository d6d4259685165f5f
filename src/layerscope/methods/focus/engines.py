"""Dense ways of running the same network: what a focused one has to beat.

Exporting a network costs no accuracy and often halves its time, so a gain over eager PyTorch alone means nothing.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Engine:
    """One way of running the dense network; ``run`` is None where it cannot be had, and ``note`` says why."""

    name: str
    run: Run | None
    note: str = ""


def eager(model: nn.Module) -> Engine:
    """Plain PyTorch, as given."""

    def run(x: Tensor) -> Any:
        with torch.no_grad():
            return model(x)

    return Engine("eager", run)


def channels_last(model: nn.Module) -> Engine:
    """PyTorch with channels-last weights and input; a copy of the model."""
    import copy

    changed: nn.Module = copy.deepcopy(model)
    for parameter in changed.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def run(x: Tensor) -> Any:
        with torch.no_grad():
            return changed(x.contiguous(memory_format=torch.channels_last))

    return Engine("channels_last", run)


def onnxruntime(model: nn.Module, example: Tensor) -> Engine:
    """ONNX Runtime on the CPU at torch's thread count; absent where its packages are."""
    try:
        import onnx  # noqa: F401  # the exporter needs it
        import onnxruntime as ort
    except ImportError as error:
        return Engine("onnxruntime", None, f"not installed ({error.name})")
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            export: Callable[..., Any] = torch.onnx.export  # takes a file object too, whatever its annotation says
            export(
                model, (example,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}, opset_version=18
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        logging.getLogger(__name__).debug("ONNX export failed", exc_info=True)
        return Engine("onnxruntime", None, f"export failed: {str(error).splitlines()[0][:120]}")

    def run(x: Tensor) -> Any:
        outputs = session.run(None, {"x": x.numpy()})
        return torch.from_numpy(outputs[0]) if len(outputs) == 1 else tuple(map(torch.from_numpy, outputs))

    return Engine("onnxruntime", run)


def compiled(model: nn.Module) -> Engine:
    """torch.compile; the first call compiles, which takes minutes for a large network."""
    compiled_model = torch.compile(model)

    def run(x: Tensor) -> Any:
        with torch.no_grad():
            return compiled_model(x)

    return Engine("torch.compile", run)


def all_engines(model: nn.Module, example: Tensor, *, compile_too: bool = False) -> tuple[Engine, ...]:
    """Every engine that can be had here, eager first, each checked against eager on ``example``.

    An engine whose output differs by more than 1e-3 of the largest output is returned without ``run``.
    """
    reference = eager(model)
    assert reference.run is not None
    expected = _first(reference.run(example))
    listed = [channels_last(model), onnxruntime(model, example)] + ([compiled(model)] if compile_too else [])
    checked = [reference]
    for engine in listed:
        note, run = engine.note, engine.run
        if run is not None:
            try:
                error = float((_first(run(example)) - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            except Exception as problem:
                run, note = None, f"does not run: {str(problem).splitlines()[0][:120]}"
            else:
                if not error < 1e-3:
                    run, note = None, f"its output differs by {error:.1e} of the largest output"
        checked.append(Engine(engine.name, run, note))
    return tuple(checked)


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output
