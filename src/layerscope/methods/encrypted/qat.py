"""Training with the quantiser in the loop: norms already folded, straight-through gradients.

The forward pass uses the power-of-two weights and the clipped, rounded activations that the integer network will have;
the backward pass takes rounding for the identity and the clip for a clip. Scale exponents are recomputed from the
weights at every step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods.encrypted.floatgraph import FloatGraph, Step, evaluate
from layerscope.methods.encrypted.graph import Conv, Requant
from layerscope.methods.encrypted.lowering import lower
from layerscope.methods.encrypted.network import QuantizedNet
from layerscope.methods.encrypted.quantizer import log_quantize


class QatNet(nn.Module):
    """A trainable stand-in for an integer network: same graph, same roundings, float weights underneath.

    Train it with any loop, then call :meth:`quantized`. :meth:`refresh` recomputes the activation scales.

    Args:
        start: the integer network after training, made with the settings that the result shall have.
        calib: its calibration batch.
    """

    def __init__(self, start: QuantizedNet, calib: Tensor) -> None:
        super().__init__()
        assert start.source is not None
        self.graph, self.settings, self.calib = start.source, start.settings, calib
        value = start.graph.values[0]
        top = 2**start.graph.input.bits - 1
        self.input_range = (float(value.offset[0]), float(value.offset[0] + value.scale[0] * top))
        self.input_scale, self.input_top = float(value.scale[0]), top
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self._keys = {s.name: s.name.replace(".", "/") for s in self.graph.steps}
        for step in self.graph.steps:
            if step.op == "conv":
                assert step.weight is not None
                key = self._keys[step.name]
                bias = torch.zeros(step.shape[0]) if step.bias is None else step.bias.float()
                self.weights[key] = nn.Parameter(step.weight.float().clone())
                self.biases[key] = nn.Parameter(bias.clone())
        self.scales: dict[str, float] = {}
        self.ratios: dict[str, Tensor] = {}
        self._read(start)

    def forward(self, x: Tensor) -> Tensor:
        """Float inputs [N, ...] -> logits [N, classes]."""
        lo = self.input_range[0]
        x = x.reshape(-1, *self.graph.in_shape)
        codes = ((x - lo) / self.input_scale).round().clamp(0, self.input_top)
        values: list[Tensor] = []
        for step in self.graph.steps:
            values.append(codes * self.input_scale + lo if step.op == "input" else self._step(step, values))
        return values[-1].flatten(1)

    def refresh(self) -> None:
        """Choose the activation scales anew for the present weights."""
        self._read(self.quantized(fixed=False))

    def quantized(self, *, fixed: bool = True) -> QuantizedNet:
        """The integer network of the present weights; ``fixed`` keeps the activation scales of the training."""
        graph = self.float_graph()
        scales = self.scales if fixed else {}
        made, _ = lower(graph, self.calib, self.settings, input_range=self.input_range, scales=scales)
        return QuantizedNet(made, self.settings, graph)

    def float_graph(self) -> FloatGraph:
        """The steps with the present weights."""
        steps = []
        for step in self.graph.steps:
            if step.op == "conv":
                key = self._keys[step.name]
                weight, bias = self.weights[key].detach().double().cpu(), self.biases[key].detach().double().cpu()
                step = replace(step, weight=weight.clone(), bias=bias.clone())
            steps.append(step)
        return replace(self.graph, steps=tuple(steps))

    def _read(self, net: QuantizedNet) -> None:
        for op, value in zip(net.graph.ops, net.graph.values, strict=True):
            if isinstance(op, Requant):
                self.scales[op.name] = float(value.scale[0])
            elif isinstance(op, Conv):
                scale = net.graph.values[op.inputs[0]].scale
                used = abs(scale[scale != 0])
                ratio = torch.from_numpy(scale / (used.min() if used.size else 1.0)).float()
                rows = ratio.view(op.groups, -1).repeat_interleave(op.q.shape[0] // op.groups, 0)
                self.ratios[op.name] = torch.where(rows == 0, 1.0, rows)[:, :, None, None]

    def _step(self, step: Step, values: list[Tensor]) -> Tensor:
        x = values[step.inputs[0]]
        if step.op == "conv":
            key, window = self._keys[step.name], step.window
            assert window is not None
            weight, ratio = self.weights[key], self.ratios[step.name].to(x.device)
            s = self.settings
            codes = log_quantize(weight * ratio, s.bits, rounding=s.rounding, per_channel=s.per_channel)
            rounded = (codes.dequantize().to(weight.dtype) / ratio).detach()
            weight = weight + (rounded - weight).detach()
            return F.conv2d(x, weight, self.biases[key], window.stride, window.padding, window.dilation, step.groups)
        if step.op == "relu":
            scale, top = self.scales[step.name], 2**self.settings.act_bits - 1
            clipped = x.clamp(0, top * scale)
            # halves go up as in the integers; the nudge keeps float noise from sending them down
            rounded = torch.floor(clipped / scale + (0.5 + 1e-4)).clamp(0, top) * scale
            return clipped + (rounded - clipped).detach()
        return evaluate(step, values)


def finetune(
    net: QuantizedNet,
    train: Any,
    calib: Tensor,
    *,
    valid: tuple[Tensor, Tensor] | None = None,
    epochs: int = 2,
    rounds: int = 3,
    lr: float = 1e-3,
    batch_size: int = 100,
    seed: int = 0,
) -> QuantizedNet:
    """Train an integer network with the quantiser in the loop; activation scales are chosen anew before every round.

    Args:
        net: what :func:`~layerscope.methods.encrypted.quantize` returned.
        train: training data as :func:`layerscope.training.fit` takes it.
        calib: float inputs for the scales.
        valid: inputs and labels on which the best round is chosen, ``net`` itself included; the last round if None.
        epochs: passes over the data in every round.
        rounds: trainings, each with its own one-cycle schedule and half the peak learning rate of the one before.
        lr: peak learning rate of AdamW (no weight decay) in the first round.
        batch_size: samples a step.
        seed: of the order of the batches.

    Raises:
        TrainingError: the training cannot start.
    """
    from layerscope import training

    def score(made: QuantizedNet) -> float:
        if valid is None:
            return 0.0
        return float((made(valid[0]).argmax(1) == valid[1]).float().mean())

    student, best, top = QatNet(net, calib), net, score(net)
    for turn in range(rounds):
        if turn:
            student.refresh()
        training.fit(
            student,
            train,
            epochs=epochs,
            batch_size=batch_size,
            optimizer="adamw",
            lr=lr / 2**turn,
            schedule="onecycle",
            seed=seed + turn,
            progress=False,
        )
        made = student.quantized()
        found = score(made)
        if found >= top:
            best, top = made, found
    return best
