"""``quantize``: a float network in, an exact integer network and its report out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from layerscope._show import Shown
from layerscope.methods.encrypted import plain
from layerscope.methods.encrypted.errors import InputError, QuantizationError
from layerscope.methods.encrypted.floatgraph import FloatGraph
from layerscope.methods.encrypted.graph import Conv, Graph, Requant
from layerscope.methods.encrypted.lowering import Settings, lower
from layerscope.methods.encrypted.quantizer import Rounding
from layerscope.methods.encrypted.trace import trace


@dataclass(frozen=True)
class LayerReport:
    """One operation of the integer network."""

    name: str
    kind: str
    shape: tuple[int, ...]
    lo: int
    hi: int
    width: int
    """Bits of the smallest word that holds every value of every channel."""
    shift: tuple[int, int] | None
    """Smallest and largest right shift of an activation."""
    weight_error: float | None
    """Relative squared error of the weight codes, |W - Wq|^2 / |W|^2."""
    zeros: float | None
    """Share of zero weights."""


@dataclass(frozen=True)
class QuantizationReport(Shown):
    """What quantisation did, layer by layer."""

    source: str
    bits: int
    act_bits: int
    rounding: str
    shift: str
    per_channel: bool
    layers: tuple[LayerReport, ...]
    fingerprint: str


class QuantizedNet:
    """An integer network with power-of-two weights; calling it is the ``plain`` backend, the reference of all others.

    ``graph`` is the network, ``settings`` how it was made, ``report`` what quantisation did.
    """

    def __init__(self, graph: Graph, settings: Settings, source: FloatGraph | None = None) -> None:
        self.graph, self.settings, self.source = graph, settings, source

    def __repr__(self) -> str:
        s = self.settings
        mark = self.graph.fingerprint[:12]
        return f"QuantizedNet({len(self.graph.ops)} ops, bits={s.bits}, act_bits={s.act_bits}, {mark})"

    def __call__(self, x: Tensor) -> Tensor:
        """Float inputs [N, ...] -> float logits [N, classes]."""
        return self.decode(self.integers(self.encode(x)))

    def integers(self, codes: Tensor, *, debug: bool = False) -> Tensor:
        """Input codes [N, C, H, W] -> integer answer [N, classes] (or a map [N, C, H, W])."""
        out = plain.run(self.graph, check_codes(self.graph, codes), debug=debug)
        return out.flatten(1) if out.shape[2:] == (1, 1) else out

    def encode(self, x: Tensor, *, clip: bool = False) -> Tensor:
        """Float inputs to input codes; see :func:`encode`."""
        return encode(self.graph, x, clip=clip)[0]

    def decode(self, answer: Tensor) -> Tensor:
        """Integer answers to float logits."""
        return decode(self.graph, answer)

    @property
    def report(self) -> QuantizationReport:
        """What quantisation did, layer by layer."""
        s = self.settings
        weights = {} if self.source is None else {st.name: st.weight for st in self.source.steps if st.op == "conv"}
        rows = []
        for op, value in zip(self.graph.ops, self.graph.values, strict=True):
            error = zeros = None
            shift = (int(op.shift.min()), int(op.shift.max())) if isinstance(op, Requant) else None
            if isinstance(op, Conv):
                zeros = float((op.q == 0).mean())
                error = _weight_error(weights.get(op.name), op)
            lo, hi = int(value.lo.min()), int(value.hi.max())
            rows.append(LayerReport(op.name, op.kind, op.shape, lo, hi, value.width, shift, error, zeros))
        name = "" if self.source is None else self.source.source
        return QuantizationReport(
            name, s.bits, s.act_bits, s.rounding, s.shift, s.per_channel, tuple(rows), self.graph.fingerprint
        )


def quantize(
    model: nn.Module | FloatGraph,
    calib: Tensor,
    *,
    bits: int = 4,
    act_bits: int = 4,
    input_bits: int | None = None,
    rounding: Rounding = "log",
    shift: Literal["exact", "truncating"] = "exact",
    per_channel: bool = True,
    lookup_bits: int | None = None,
    input_range: tuple[float, float] | None = None,
    scales: Mapping[str, float] | None = None,
    correct_bias: bool = True,
) -> QuantizedNet:
    """Fold the norms of ``model``, quantise it after training, and return the integer network.

    Args:
        model: a network in evaluation mode of convolutions, linear layers, batch norms, ReLU, pools and sums.
        calib: float inputs [N, ...] that look like those to come.
        bits: width of a weight code, 2..5; 4 lost nothing against 5 where it was measured, 3 wants training after.
        act_bits: width of an activation code, 1..8.
        input_bits: width of an input code; ``act_bits`` if None.
        rounding: ``log`` (the paper's) or ``linear`` (smallest squared error); neither wins on every network.
        shift: ``exact`` left shifts before the sum, or ``truncating`` right shifts as the paper draws them.
        per_channel: one scale exponent per output channel, or one per layer.
        lookup_bits: raise the right shifts until at most this many bits reach an activation (6 for ``concrete``).
        input_range: smallest and largest float input; from ``calib`` if None.
        scales: output scale of named activations; searched on ``calib`` if absent.
        correct_bias: move each bias by what rounding has moved its channel's mean on ``calib`` (Nagel et al. 2019,
            arXiv 1906.04721, section 4.2, with measured means).

    Raises:
        UnsupportedModuleError: a module without an exact integer form, or training mode.
        QuantizationError: settings or calibration data out of range.
    """
    if not isinstance(calib, Tensor):
        raise QuantizationError(f"expected a tensor of calibration inputs, got {type(calib).__name__}")
    graph = model if isinstance(model, FloatGraph) else trace(model, calib.shape[1:])
    settings = Settings(bits, act_bits, input_bits, rounding, shift, per_channel, lookup_bits)
    made, source = lower(graph, calib, settings, input_range=input_range, scales=scales, corrected=correct_bias)
    return QuantizedNet(made, settings, source)


def check_codes(graph: Graph, codes: Tensor) -> Tensor:
    """The codes as int64 [N, C, H, W].

    Raises:
        InputError: wrong dtype, wrong shape, or a code outside [0, 2^bits - 1].
    """
    if not isinstance(codes, Tensor):
        raise InputError(f"expected a tensor of integer codes, got {type(codes).__name__}")
    if codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool:
        raise InputError(f"expected integer codes, got {codes.dtype}; encode() turns floats into codes")
    top = 2**graph.input.bits - 1
    codes = _shaped(graph, codes).long()
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) > top):
        raise InputError(
            f"codes must lie in 0..{top}, got {int(codes.min())}..{int(codes.max())}; encode(clip=True) saturates"
        )
    return codes


def encode(graph: Graph, x: Tensor, *, clip: bool = False) -> tuple[Tensor, int]:
    """Float inputs [N, ...] to codes [N, C, H, W], and how many values were saturated.

    ``round((x - offset) / scale)``; a value more than half a step outside the range is an error unless ``clip``.

    Raises:
        InputError: wrong shape or dtype, NaN or infinity, or values outside the range.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"expected a tensor of floats, got {type(x).__name__}; torch.as_tensor() makes one")
    if not x.dtype.is_floating_point:
        raise InputError(f"expected float inputs, got {x.dtype}; pass codes to integers()")
    x = _shaped(graph, x).double()
    if not bool(torch.isfinite(x).all()):
        raise InputError("the input holds NaN or infinity")
    value = graph.values[0]
    scale, offset = float(value.scale[0]), float(value.offset[0])
    top = 2**graph.input.bits - 1
    codes = torch.round((x - offset) / scale)
    outside = int(((codes < 0) | (codes > top)).sum())
    if outside and not clip:
        raise InputError(
            f"{outside} of {codes.numel()} input values lie outside [{offset:.4g}, {offset + top * scale:.4g}]; "
            "pass clip=True to saturate them, or quantise with a wider input_range"
        )
    return codes.clamp(0, top).long(), outside


def decode(graph: Graph, answer: Tensor) -> Tensor:
    """Integer answers [N, C] or [N, C, H, W] to floats: scale * code + offset."""
    value = graph.output
    view = (1, -1) + (1,) * (answer.ndim - 2)
    scale, offset = torch.from_numpy(value.scale).view(view), torch.from_numpy(value.offset).view(view)
    return (answer.double().cpu() * scale + offset).float()


def _shaped(graph: Graph, x: Tensor) -> Tensor:
    shape = graph.input.shape
    given = tuple(x.shape[1:])
    if x.ndim < 2 or (given != shape and not (shape[1:] == (1, 1) and math.prod(given) == shape[0])):
        raise InputError(f"expected a batch of shape [N, {', '.join(map(str, shape))}], got {list(x.shape)}")
    return x.reshape(-1, *shape)


def _weight_error(weight: Tensor | None, op: Conv) -> float | None:
    """Relative error after the best scale per output channel, which is what the codes can be held to."""
    if weight is None:
        return None
    w, q = weight.numpy().reshape(op.q.shape[0], -1), op.q.reshape(op.q.shape[0], -1).astype(np.float64)
    gain = (w * q).sum(1) / np.maximum((q * q).sum(1), 1)
    total = float((w * w).sum())
    return float(((w - gain[:, None] * q) ** 2).sum()) / total if total else 0.0
