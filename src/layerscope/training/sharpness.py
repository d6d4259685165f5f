"""How steep and how curved the loss is at a network's weights, from a handful of gradients and no training step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.errors import TrainingError
from layerscope.probe.network import open_network
from layerscope.probe.outputs import Select
from layerscope.probe.state import unchanged
from layerscope.training.evaluation import home, modes_kept
from layerscope.training.seeds import derive, reseed
from layerscope.training.steps import LossFn, Supervised, placed

#: Length of the finite difference, as a share of the weights' length: far above float32's rounding, well inside the
#: region in which a ReLU network's activation pattern hardly changes.
_STEP = 1e-3


@dataclass(frozen=True)
class Curvature:
    """Local shape of the loss of one batch, over all trainable weights w together."""

    loss: float
    gradient: float
    """|g|, g = dLoss/dw."""
    along_gradient: float
    """g.Hg / |g|^2, H the Hessian: the curvature that a gradient step meets."""
    sharpness: float
    """Largest curvature that power iteration has found, starting at g; a lower bound on the largest |eigenvalue|."""

    def overshoot(self, lr: float) -> float:
        """``lr * sharpness / 2``: above 1, plain gradient descent moves away from the minimum along that direction."""
        return lr * self.sharpness / 2.0


def curvature(
    model: nn.Module,
    batch: Any,
    *,
    iterations: int = 4,
    loss: str | LossFn = "cross_entropy",
    output: Select = None,
    seed: int = 0,
) -> Curvature:
    """The loss, its gradient and its sharpness on one batch, in training mode; the network stays as it is.

    Hessian-vector products are one-sided differences of gradients, Hv = (g(w + h v) - g(w)) / h, so that layers whose
    backward pass cannot be differentiated again are covered too. ``iterations + 1`` forward and backward passes.

    Args:
        model: any network.
        batch: ``(x, y)`` of the size that you train with, since norms that see the batch change the loss with it.
        iterations: of power iteration, at least 1.
        loss: by name or as a function.
        output: which part of the network's output the loss takes.
        seed: of random layers; all passes draw the same numbers.

    Returns:
        Plain numbers, NaN or infinite where the network's own are.

    Raises:
        TrainingError: fewer than one iteration, or nothing to train.

    Source: sharpness and the stable learning rate 2 / sharpness as in Cohen et al. 2021, arXiv 2103.00065.
    """
    if iterations < 1:
        raise TrainingError(f"curvature needs at least one iteration, got {iterations}")
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise TrainingError("the network has no trainable weights, so its loss has no curvature")
    device, dtype = home(model)
    step = Supervised(loss, output)
    batch = placed(batch, device, dtype, False)

    def gradient() -> tuple[float, list[Tensor]]:
        reseed(device, derive(seed, "curvature", 0))
        value = step(model, batch)[0]
        found = torch.autograd.grad(value, weights, allow_unused=True)
        pairs = zip(found, weights, strict=True)
        return float(value.detach()), [torch.zeros_like(w) if g is None else g.detach() for g, w in pairs]

    with unchanged(open_network(model)), modes_kept(model):
        model.train()
        value, base = gradient()
        size = _length(base)
        length = _STEP * max(_length([w.detach() for w in weights]), 1e-12)
        start = [w.detach().clone() for w in weights]
        direction, along, top = base, math.nan, 0.0
        for turn in range(iterations):
            norm = _length(direction)
            if not 0.0 < norm < math.inf:
                break
            with torch.no_grad():
                for w, w0, d in zip(weights, start, direction, strict=True):
                    w.copy_(w0 + (length / norm) * d)
            moved = gradient()[1]
            product = [(m - b) / length for m, b in zip(moved, base, strict=True)]  # H times the unit direction
            pairs = zip(product, direction, strict=True)
            quotient = sum(float((p.double() * d.double()).sum()) for p, d in pairs) / norm
            along = quotient if turn == 0 else along
            top = quotient if math.isnan(quotient) or abs(quotient) > abs(top) else top
            direction = product
    return Curvature(value, size, along, abs(top))


def _length(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
