"""Which records carry the signal through a network: the residual stream, or the chain of layers of a plain net."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal

from layerscope.probe.records import FEWEST_BLOCKS, LayerRecord, Profile

#: mean^2 / second moment above which a stream counts as non-negative; 1/pi = 0.32 for a rectified
#: Gaussian, 0.12 after x sigmoid(x), about 1/C for a sum of zero-mean branches over C channels.
SAME_SIGN = 0.08
#: Scale-free gradient of a layer over that of an earlier and of a later one, below which it is off the path.
BESIDE = 1e-3


@dataclass(frozen=True)
class Trunk:
    """The main path of a network.

    Attributes:
        kind: ``residual`` (block outputs carry the stream) or ``plain`` (every layer's output does).
        unit: what one step along the trunk is called in a sentence.
        forward: records whose second moment and similarity describe the signal.
        backward: records whose gradient is compared from the first to the last.
        tokens: the trunk is a sequence of tokens.
    """

    kind: Literal["residual", "plain"]
    unit: Literal["block", "layer"]
    forward: tuple[LayerRecord, ...]
    backward: tuple[LayerRecord, ...]
    tokens: bool

    @property
    def stages(self) -> tuple[tuple[LayerRecord, ...], ...]:
        """``forward`` cut where the shape changes: inside a stage, growth is a matter of depth alone."""
        return tuple(tuple(group) for _, group in groupby(self.forward, key=lambda r: r.shape[1:]))

    @property
    def stream_blocks(self) -> int | None:
        """Blocks in the last stage of a residual stream whose sign is (nearly) always the same; None for all others."""
        if self.kind != "residual" or self.tokens:
            return None
        last = self.forward[-1]
        if last.mean is None or not last.ms or last.mean**2 < SAME_SIGN * last.ms:
            return None
        return len(self.stages[-1])


def trunk(profile: Profile) -> Trunk:
    """The trunk of a profiled network; its series are empty where nothing suitable was recorded."""
    blocks = innermost(tuple(r for r in profile.of("block") if r.residual))
    if len(blocks) >= FEWEST_BLOCKS:
        return Trunk("residual", "block", blocks, blocks, any(b.layout == "token" for b in blocks))
    forward = layer_outputs(profile)
    return Trunk("plain", "layer", forward, weight_layers(profile), any(r.layout == "token" for r in forward))


def weight_layers(profile: Profile) -> tuple[LayerRecord, ...]:
    """The weight layers before the classifier whose gradients one compares: those on the way from input to output.

    Where a layer moves the loss a thousand times less than one before and one after it (the classifier too), the
    signal goes around it: a branch that is concatenated and starts near zero, by a layer scale for one. Along a chain
    no such gap can be, since what reaches the later layer has come through it.
    """
    found = profile.of("conv", "linear")
    sizes = [r.grad_scaled or 0.0 for r in found]
    before, after = list(accumulate(sizes, max)), list(accumulate(reversed(sizes), max))[::-1]
    return tuple(
        r
        for r, size, largest, later in zip(found, sizes, before, after, strict=True)
        if r.name != profile.classifier and not 0 < size < BESIDE * min(largest, later)
    )


def layer_outputs(profile: Profile) -> tuple[LayerRecord, ...]:
    """Per weight layer, what it hands on: the last activation, norm or weight output before the next weight layer.

    This is the activation in the usual order, the norm where the norm holds the activation, and the convolution itself
    where the activation is a function that no hook sees.
    """
    found: list[LayerRecord] = []
    for record in profile.records:
        if record.name == profile.classifier:
            break
        if record.role in ("conv", "linear"):
            found.append(record)
        elif record.role in ("norm", "activation") and found:
            found[-1] = record
    return tuple(found)


def innermost(blocks: tuple[LayerRecord, ...]) -> tuple[LayerRecord, ...]:
    """Blocks that hold no other recorded block: a stage of blocks counts as its blocks, not once more as itself.

    A block that holds one other and hands on something else stands for itself: the other is a sum inside its branch,
    such as a lambda layer's of content and position, and not the stream.
    """
    inside = {b.name: [o for o in blocks if o.name.startswith(b.name + ".")] for b in blocks}
    outer = {b.name for b in blocks if len(inside[b.name]) == 1 and not _same_output(b, inside[b.name][0])}
    branch = {o.name for name in outer for o in inside[name]}
    return tuple(b for b in blocks if (not inside[b.name] or b.name in outer) and b.name not in branch)


def _same_output(a: LayerRecord, b: LayerRecord) -> bool:
    return a.shape == b.shape and a.ms == b.ms
