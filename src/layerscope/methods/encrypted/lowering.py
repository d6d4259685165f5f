"""From float steps and a calibration batch to the integer network.

Walks the steps once. Convolutions get power-of-two codes; every ReLU becomes ``min(max(acc, 0) >> r, 2^a - 1)`` with
the output scale fixed to a power of two times the accumulator's, chosen for the smallest squared error on the
calibration batch. Rounding instead of flooring is free: half a step goes into the bias before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layerscope.methods.encrypted.errors import QuantizationError, UnsupportedModuleError
from layerscope.methods.encrypted.floatgraph import FloatGraph, Step, evaluate
from layerscope.methods.encrypted.graph import (
    Add,
    Concat,
    Conv,
    Flatten,
    Floats,
    Graph,
    Input,
    Ints,
    MaxPool,
    Op,
    Requant,
    Sign,
    SumPool,
    Value,
    width_of,
)
from layerscope.methods.encrypted.plain import execute
from layerscope.methods.encrypted.quantizer import LogWeights, Rounding, exponent_count, log_quantize
from layerscope.methods.encrypted.ranges import bounds, truncation

#: Bits by which a bias may exceed all that its channel's inputs can add up to; beyond, those give up precision to it.
_BIAS_BITS = 12
#: A shift that leaves nothing of any exact integer.
_FAR = 60


@dataclass(frozen=True)
class Settings:
    """How a float network becomes an integer one."""

    bits: int = 4
    """Width of a weight code, 2..5: one sign, K = 2^(bits-1) - 1 exponents."""
    act_bits: int = 4
    """Width of an activation code, 1..8."""
    input_bits: int | None = None
    """Width of an input code; the activations' if None."""
    rounding: Rounding = "log"
    shift: Literal["exact", "truncating"] = "exact"
    per_channel: bool = True
    lookup_bits: int | None = None
    """Raise the right shift until at most this many bits (sign included) reach an activation; None: no limit."""

    def check(self) -> None:
        """Raise QuantizationError for anything out of range."""
        exponent_count(self.bits)
        for name, value in (("act_bits", self.act_bits), ("input_bits", self.input_bits)):
            if value is not None and not 1 <= value <= 8:
                raise QuantizationError(f"{name} must be 1..8, got {value!r}")
        if self.shift not in ("exact", "truncating"):
            raise QuantizationError(f"shift must be 'exact' or 'truncating', got {self.shift!r}")
        if self.rounding not in ("log", "linear"):
            raise QuantizationError(f"rounding must be 'log' or 'linear', got {self.rounding!r}")
        if self.lookup_bits is not None and self.lookup_bits < 2:
            raise QuantizationError(f"lookup_bits must be at least 2 (a sign and one bit), got {self.lookup_bits!r}")


@dataclass
class _Held:
    """A step's counterpart: operation index, what its codes stand for, and both kinds of values on the batch."""

    op: int
    value: Value
    codes: Tensor
    floats: Tensor


def lower(
    graph: FloatGraph,
    calib: Tensor,
    settings: Settings,
    *,
    input_range: tuple[float, float] | None = None,
    scales: Mapping[str, float] | None = None,
    corrected: bool = False,
) -> tuple[Graph, FloatGraph]:
    """The integer network of ``graph``, and the steps with the biases that it has.

    Args:
        graph: folded steps.
        calib: float inputs [N, C, H, W] that look like those to come; they set scales, never ranges.
        settings: bits and modes.
        input_range: smallest and largest float input; taken from ``calib`` if None.
        scales: output scale of named activations, instead of the search (quantisation-aware training fixes them).
        corrected: move each bias by what rounding has moved the channel's mean on the batch. Not after training with
            the quantiser in the loop, where the biases already fit the rounded weights.

    Raises:
        UnsupportedModuleError: a step that has no exact integer form.
        QuantizationError: settings out of range, or a calibration batch that is empty, constant or not finite.
    """
    settings.check()
    graph.require_supported()
    calib = checked_calibration(graph, calib)
    return _Lowering(graph, settings, scales or {}, corrected).run(calib, input_range)


def checked_calibration(graph: FloatGraph, calib: Tensor) -> Tensor:
    """The batch in float64 on the CPU, as [N, C, H, W].

    Raises:
        QuantizationError: no batch of the network's inputs, an empty one, or one that holds NaN or infinity.
    """
    if not isinstance(calib, Tensor) or calib.ndim < 2 or calib[:1].numel() not in (0, math.prod(graph.in_shape)):
        got = list(calib.shape) if isinstance(calib, Tensor) else type(calib).__name__
        raise QuantizationError(f"expected a calibration batch [N, {', '.join(map(str, graph.in_shape))}], got {got}")
    calib = calib.detach().double().cpu()
    if calib.numel() == 0 or not bool(torch.isfinite(calib).all()):
        raise QuantizationError("the calibration batch must hold at least one sample and no NaN or infinity")
    return calib.reshape(-1, *graph.in_shape)


class _Lowering:
    def __init__(self, graph: FloatGraph, settings: Settings, scales: Mapping[str, float], corrected: bool) -> None:
        self.graph, self.settings, self.scales, self.corrected = graph, settings, scales, corrected
        self.biases: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.held: list[_Held] = []

    def run(self, calib: Tensor, input_range: tuple[float, float] | None) -> tuple[Graph, FloatGraph]:
        self.held.append(self._input(calib, input_range))
        for step in self.graph.steps[1:]:
            floats = evaluate(step, [h.floats for h in self.held])
            if step.op == "scale":
                self.held.append(replace(self.held[step.inputs[0]], value=self._rescaled(step), floats=floats))
                continue
            sources = [self.held[i] for i in step.inputs]
            make = getattr(self, f"_{step.op}")
            op, scale, offset = make(step, sources, floats)
            self.held.append(self._emit(op, scale, offset, floats))
        values: list[Value | None] = [None] * len(self.ops)
        for held in self.held:  # an alias (a folded scale) comes after what it renames; the answer keeps the last word
            if values[held.op] is None or held is self.held[-1]:
                values[held.op] = held.value
        assert all(v is not None for v in values)
        made = Graph(tuple(self.ops), tuple(v for v in values if v is not None))
        steps = (replace(s, bias=self.biases[s.name]) if s.name in self.biases else s for s in self.graph.steps)
        return made, replace(self.graph, steps=tuple(steps))

    def _input(self, calib: Tensor, input_range: tuple[float, float] | None) -> _Held:
        lo, hi = input_range or (float(calib.min()), float(calib.max()))
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise QuantizationError(f"inputs from {lo} to {hi} have no range; give input_range=(smallest, largest)")
        lo = 0.0 if 0 <= lo < (hi - lo) / 16 else lo  # an offset costs bias work at padded borders: not for nothing
        bits = self.settings.input_bits or self.settings.act_bits
        top = 2**bits - 1
        scale = (hi - lo) / top
        channels = self.graph.in_shape[0]
        codes = ((calib - lo) / scale).round().clamp(0, top).long()
        self.ops.append(Input("input", (), self.graph.in_shape, bits))
        value = Value(
            np.zeros(channels, np.int64),
            np.full(channels, top, np.int64),
            np.full(channels, scale),
            np.full(channels, lo),
        )
        return _Held(0, value, codes, calib)

    def _emit(self, op: Op, scale: Floats, offset: Floats, floats: Tensor) -> _Held:
        self.ops.append(op)
        index = len(self.ops) - 1
        lo, hi = self._bounds(op)
        codes = execute(op, [self._of(i).codes for i in op.inputs])
        return _Held(index, Value(lo, hi, scale, offset), codes, floats)

    def _of(self, op: int) -> _Held:
        return next(h for h in self.held if h.op == op)

    def _bounds(self, op: Op) -> tuple[Ints, Ints]:
        sources = [self._of(i).value for i in op.inputs]
        return bounds(op, [(v.lo, v.hi) for v in sources], [self.ops[i].shape for i in op.inputs])

    def _rescaled(self, step: Step) -> Value:
        value = self.held[step.inputs[0]].value
        assert step.weight is not None
        assert step.bias is not None
        a, d = step.weight.numpy(), step.bias.numpy()
        return replace(value, scale=value.scale * a, offset=value.offset * a + d)

    # one method a step; each returns the operation, the scale and the offset of its output

    def _conv(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        assert step.weight is not None
        assert step.window is not None
        value, shape = sources[0].value, self.ops[sources[0].op].shape
        w = step.weight
        scale, offset = self._per_weight(step, value.scale), self._per_weight(step, value.offset)
        used = np.abs(value.scale[value.scale != 0])
        unit = float(used.min()) if used.size else 1.0
        codes = log_quantize(
            w * (scale / unit),
            self.settings.bits,
            rounding=self.settings.rounding,
            per_channel=self.settings.per_channel,
        )
        if self.settings.shift == "exact":
            codes = codes.reduced()
        codes = self._below_bias(codes, step.bias, unit, value)
        kept = torch.where(scale != 0, codes.dequantize() * unit / torch.where(scale != 0, scale, 1.0), w)
        truncating = self.settings.shift == "truncating"
        op = Conv(
            step.name,
            (sources[0].op,),
            step.shape,
            codes.q.numpy(),
            np.zeros((w.shape[0], 1, 1), np.int64),
            step.window,
            step.groups,
            truncating,
        )
        out_scale = unit * np.exp2(codes.exponent.numpy().astype(np.float64))
        if truncating:
            out_scale = out_scale * np.exp2(truncation(op).reshape(-1).astype(np.float64))
        bias = torch.zeros(w.shape[0], 1, 1, dtype=torch.float64)
        if step.bias is not None:
            bias = bias + step.bias.view(-1, 1, 1)
        if bool((offset != 0).any()):
            window = step.window
            ones = torch.ones(1, *shape, dtype=torch.float64)
            border = F.conv2d(ones, kept * offset, None, window.stride, window.padding, window.dilation, step.groups)[0]
            if window.padding == (0, 0):
                border = border[:, :1, :1]
            bias = bias + border
        unit_of = torch.from_numpy(out_scale).view(-1, 1, 1)
        op = replace(op, bias=torch.round(bias / unit_of).long().numpy())
        if self.corrected:
            self._bounds(op)  # what is too wide cannot be executed
            drift = _drift(floats, execute(op, [sources[0].codes]).double() * unit_of)
            op = replace(op, bias=torch.round((bias + drift) / unit_of).long().numpy())
            self.biases[step.name] = drift.flatten() + (0 if step.bias is None else step.bias)
        return op, out_scale, np.zeros(w.shape[0])

    @staticmethod
    def _below_bias(codes: LogWeights, bias: Tensor | None, unit: float, value: Value) -> LogWeights:
        """A coarser scale for channels whose inputs are nothing beside their bias, as pruned channels have them."""
        if bias is None:
            return codes
        top = max(float(np.abs(value.lo).max()), float(np.abs(value.hi).max()), 1.0)
        reach = (codes.q.abs().double().flatten(1).sum(1) * top).clamp(min=1.0).log2()
        size = bias.abs().clamp(min=1e-300).log2() - codes.exponent.double() - float(np.log2(unit))
        return codes.coarser((size - reach - _BIAS_BITS).ceil().clamp(min=0).long())

    def _per_weight(self, step: Step, per_channel: Floats) -> Tensor:
        """A per-input-channel array laid out like the weight [O, I/g, 1, 1]."""
        assert step.weight is not None
        outputs, per_group = step.weight.shape[:2]
        rows = torch.from_numpy(per_channel).view(step.groups, per_group)
        return rows.repeat_interleave(outputs // step.groups, 0).view(outputs, per_group, 1, 1)

    def _plain_scale(self, step: Step, value: Value, *, offset: bool) -> None:
        """Refuse codes that do not count from zero where no convolution can take the offset in."""
        if offset and (value.offset != 0).any() and "scale" not in self._before(step):
            raise UnsupportedModuleError(
                step.name,
                "sees the network's input without a convolution between, and its codes do not start at zero",
                "give input_range=(0, largest) and inputs that are not negative, or put a convolution before it",
            )
        if (value.scale <= 0).any() or (offset and (value.offset != 0).any()):
            raise UnsupportedModuleError(
                step.name,
                "follows a norm that cannot be folded (its input feeds several consumers, or is no convolution)",
                "put the norm right after a convolution that nothing else reads, or right before one",
            )

    def _before(self, step: Step) -> set[str]:
        """Operations between ``step`` and the convolutions or the input before it."""
        found: set[str] = set()
        waiting = list(step.inputs)
        while waiting:
            other = self.graph.steps[waiting.pop()]
            found.add(other.op)
            if other.op != "conv":
                waiting += other.inputs
        return found

    def _relu(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        held = sources[0]
        self._plain_scale(step, held.value, offset=True)
        scale = held.value.scale
        base = float(scale.max())
        ratios = _log2_exact(base / scale)
        if ratios is None:
            raise UnsupportedModuleError(
                step.name,
                "sees channels whose scales are not powers of two apart",
                "put the norm right after a convolution that nothing else reads",
            )
        best = self._best_shift(step, held, floats, ratios, base)
        shift = ratios + best
        half = np.where(shift > 0, 1 << np.clip(shift - 1, 0, _FAR), 0).astype(np.int64)
        never = held.value.hi < half  # such a channel's code is 0 for every input: no shift needs to say it
        lengths = [max(0, int(top)).bit_length() for top in held.value.hi]
        shift, half = np.where(never, lengths, shift), np.where(never, 0, half)
        self._round_half(held, step, half)
        op = Requant(step.name, (held.op,), step.shape, shift, self.settings.act_bits)
        out = base * 2.0**best
        return op, np.full_like(scale, out), np.zeros_like(scale)

    def _best_shift(self, step: Step, held: _Held, floats: Tensor, ratios: Ints, base: float) -> int:
        top = 2**self.settings.act_bits - 1
        fixed = self.scales.get(step.name)
        smallest = 0
        if self.settings.lookup_bits is not None:
            while self._lookup_width(held.value, ratios + smallest) > self.settings.lookup_bits:
                smallest += 1
        if fixed is not None:
            return max(smallest, round(float(np.log2(fixed / base))))
        acc = held.codes.double() * torch.from_numpy(held.value.scale).view(-1, 1, 1)
        errors: dict[int, float] = {}
        for shift in range(smallest, smallest + 40):
            out = base * 2.0**shift
            approx = torch.floor(acc / out + 0.5).clamp(0, top) * out
            errors[shift] = float((approx - floats).square().mean())
            if out > float(floats.max()) and len(errors) > 1:
                break
        return min(errors, key=lambda s: (errors[s], s))

    def _lookup_width(self, value: Value, shift: Ints) -> int:
        shift = np.minimum(shift, _FAR)
        half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
        return max(
            width_of(int(lo), int(hi)) for lo, hi in zip(value.lo >> shift, (value.hi + half) >> shift, strict=True)
        )

    def _round_half(self, held: _Held, step: Step, half: Ints) -> None:
        """Put half a step into a bias before the activation, if nothing else reads it; else the shift floors."""
        touched: list[int] = []
        if not self._push(held.op, step.inputs[0], half, touched):
            return
        for index in sorted(touched):
            op = self.ops[index]
            codes = execute(op, [self._of(i).codes for i in op.inputs])
            lo, hi = self._bounds(op)
            for other in self.held:
                if other.op == index:
                    other.codes, other.value = codes, replace(other.value, lo=lo, hi=hi)

    def _push(self, index: int, step: int, half: Ints, touched: list[int]) -> bool:
        if len(self.graph.consumers(step)) != 1:
            return False
        op = self.ops[index]
        if isinstance(op, Conv):
            self.ops[index] = replace(op, bias=op.bias + half.reshape(-1, 1, 1))
            touched.append(index)
            return True
        if isinstance(op, Add):
            for side, shift in ((0, op.left), (1, op.right)):
                before = self.graph.steps[step].inputs[side]
                if (half % (1 << shift) == 0).all() and self._push(op.inputs[side], before, half >> shift, touched):
                    touched.append(index)
                    return True
        return False

    def _sign(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        self._plain_scale(step, sources[0].value, offset=True)
        channels = step.shape[0]
        return Sign(step.name, (sources[0].op,), step.shape), np.full(channels, 2.0), np.full(channels, -1.0)

    def _maxpool(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        assert step.window is not None
        value = sources[0].value
        self._plain_scale(step, value, offset=False)
        return MaxPool(step.name, (sources[0].op,), step.shape, step.window), value.scale, value.offset

    def _avgpool(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        assert step.window is not None
        value = sources[0].value
        if step.window.padding != (0, 0):
            self._plain_scale(step, value, offset=True)
        op = SumPool(step.name, (sources[0].op,), step.shape, step.window)
        return op, value.scale / step.window.taps, value.offset

    def _add(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        x, y = sources[0].value, sources[1].value
        ratio = _log2_exact(x.scale / y.scale) if (x.scale > 0).all() and (y.scale > 0).all() else None
        if ratio is None:
            raise UnsupportedModuleError(
                step.name,
                "adds two values whose scales are not a power of two apart",
                "fold the norms of both branches into convolutions, and pool by windows of 2^k before a sum",
            )
        left, right = np.maximum(ratio, 0), np.maximum(-ratio, 0)
        op = Add(step.name, (sources[0].op, sources[1].op), step.shape, left, right)
        return op, np.minimum(x.scale, y.scale), x.offset + y.offset

    def _concat(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        op = Concat(step.name, tuple(s.op for s in sources), step.shape)
        scale = np.concatenate([s.value.scale for s in sources])
        return op, scale, np.concatenate([s.value.offset for s in sources])

    def _flatten(self, step: Step, sources: list[_Held], floats: Tensor) -> tuple[Op, Floats, Floats]:
        value, shape = sources[0].value, self.ops[sources[0].op].shape
        op = Flatten(step.name, (sources[0].op,), step.shape)
        area = shape[1] * shape[2]
        return op, np.repeat(value.scale, area), np.repeat(value.offset, area)


def _drift(floats: Tensor, found: Tensor) -> Tensor:
    """[C, 1, 1] by how much ``found`` lies below ``floats`` on average, as far as the batch can tell.

    A channel's mean difference m over N samples is known to m +- s / sqrt(N); it is taken times 1 - s^2 / (N m^2), or
    not at all where that is negative, so that a batch of a few samples moves little.
    """
    each = (floats - found).mean((2, 3))
    if len(each) < 2:
        return torch.zeros(each.shape[1], 1, 1, dtype=torch.float64)
    mean, error = each.mean(0), each.var(0) / len(each)
    share = (1 - error / mean.square().clamp(min=1e-300)).clamp(min=0)
    return (share * mean).view(-1, 1, 1)


def _log2_exact(ratio: Floats) -> Ints | None:
    """log2 of ratios that are powers of two (to float rounding); None if one is not."""
    logs = np.log2(ratio)
    whole = np.round(logs)
    return whole.astype(np.int64) if (np.abs(logs - whole) < 1e-9).all() else None
