"""What to try, given which axis is bad, on which kind of network. Most effective first."""

from __future__ import annotations

import re

from layerscope.verdict.types import Axis, AxisName, Level


def remedies(axes: tuple[Axis, ...], *, residual: bool, tokens: bool, norm: str, tiny_sets: bool) -> tuple[str, ...]:
    """Advice for every axis that is not good, at most five lines; none for a healthy network.

    Args:
        axes: the four axes.
        residual: the trunk is a residual stream.
        tokens: the trunk is a sequence of tokens.
        norm: the norm spec, or ``as is``.
        tiny_sets: some statistic is taken over three elements or fewer.
    """
    level: dict[AxisName, Level] = {a.name: a.level for a in axes}
    found: list[str] = []
    if level.get("F") == "bad":
        found += _forward(next(a for a in axes if a.name == "F"), residual, norm)
        return tuple(found[:5])
    if any(a.name == "B" and a.text.startswith("the loss moves no weight") for a in axes):
        return (
            "look at what is pooled: behind a norm that subtracts the mean over positions or tokens, it is zero",
            "use a norm that keeps every sample's mean there: layer, group:size=2 or more, batch",
        )
    if any(a.name == "B" and a.level == "bad" and a.value is None for a in axes):
        return (
            "remove the detach, no_grad or non-differentiable function behind that layer, or freeze what it cuts off",
        )
    if tiny_sets:
        found.append(
            "normalize over more elements: larger groups, a larger batch, or no norm where the map is 1x1 or 2x2"
        )
    if level.get("N") in ("bad", "caution"):
        found += [
            "train with a larger batch, or synchronize statistics across devices",
            "use a norm that does not see the batch: group:size=8, or evonorm-s0",
        ]
    if level.get("B") == "bad":
        found += [
            "lower the learning rate and warm it up over the first epochs",
            "use larger groups: gradients grow less per layer the more channels share a statistic",
        ]
        if not residual:
            found.append("add skip connections: they bound the growth of the gradient")
    if level.get("I") in ("bad", "caution"):
        if tokens:
            found.append("scale the residual branches by 1/sqrt(depth), or move the norm before the branch (pre-LN)")
        elif norm.startswith("instance"):
            found.append(
                "keep per-sample means: group:size=2 or more, or batch; pooling a map standardized alone leaves nothing"
            )
        else:
            if any(a.name == "I" and "after pooling" in a.text for a in axes):
                # 60 steps of CNNs on digits, share correct: 4 and 8 layers of GroupNorm 0.09 to 0.78, 0.20 to 0.69;
                # 4 without a norm 0.19 to 0.63; 2 of BatchNorm 0.48 to 0.87. A LayerNorm in that place does not help.
                found.append("put a batch norm between the pooling and the classifier: it removes what samples share")
            if not norm.startswith("batch"):
                found.append(f"use {_more_centred(norm)}batch at 16 samples or more: centring keeps samples apart")
            if not residual:
                found.append("a residual net collapses more slowly than a plain one of the same depth")
    if level.get("F") == "caution":
        found.append("warm up the learning rate; scale residual branches by 1/sqrt(depth) or use SkipInit")
    return tuple(dict.fromkeys(found))[:5]


def _more_centred(norm: str) -> str:
    """Smaller groups than those in use, while there are any that still keep per-sample means."""
    size = re.fullmatch(r"group:(?:.*,)?size=(\d+).*", norm)
    if size is None:
        return "small groups (group:size=4), or "
    smaller = min(4, int(size[1]) // 2)
    return f"smaller groups (group:size={smaller}), or " if smaller >= 2 else ""


def _forward(axis: Axis, residual: bool, norm: str) -> list[str]:
    if axis.text.startswith("one layer"):
        return ["initialize that layer as the others, std sqrt(2/fan_in) for ReLU", "or put a norm behind it"]
    vanishing = axis.value is not None and axis.value < 1
    if vanishing:
        return [
            "check the init gain: std sqrt(2/fan_in) (He) keeps a ReLU network's second moment",
            "bounded layers (dyt, derf) belong before the residual branch, not after the addition",
            "add an activation-based norm: batch, group:size=8",
        ]
    advice = []
    if residual:
        advice.append("SkipInit: multiply every residual branch by a learnable scalar that starts at 0")
        if norm.startswith("weight"):
            advice.append(
                "put the scaled activation on the branch only: on the skip path it multiplies the stream at every block"
            )
        advice.append("or divide by the growing scale, x + a f(x / b) with b the predicted std (NFNets)")
    else:
        advice.append("check the init gain: std sqrt(2/fan_in) (He) keeps a ReLU network's second moment")
    advice.append("or use a norm that divides by what it measures: batch, group:size=8, layer")
    return advice
