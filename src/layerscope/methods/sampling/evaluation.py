"""How good a sampling network is on labelled data: accuracy, calibration, and doubt where doubt is due."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.hardware import fixed_point
from layerscope.methods.sampling.predictor import predict
from layerscope.methods.sampling.uncertainty import Reliability, auroc, negative_log_likelihood, reliability


@dataclass(frozen=True)
class Evaluation:
    """A sampling network on N labelled examples."""

    examples: int
    passes: float
    """Mean number of passes spent on an example."""
    accuracy: float
    nll: float
    """Negative log-likelihood of the labels, nats."""
    reliability: Reliability
    entropy: float
    """Mean predictive entropy, nats."""
    mutual_information: float
    """Mean of the part of it on which the passes disagree."""
    settled: float | None = None
    """Share of examples at which adaptive stopping reached its bound; None where all passes were spent."""
    strangers: tuple[tuple[str, float], ...] = ()
    """Name of a set of other inputs -> AUROC of the predictive entropy against the examples'."""

    @property
    def ece(self) -> float:
        """Expected calibration error."""
        return self.reliability.ece

    def __str__(self) -> str:
        text = (
            f"{self.examples} examples, {self.passes:.1f} passes each: accuracy {self.accuracy:.2%}, "
            f"ECE {self.ece:.2%}, NLL {self.nll:.3f}, entropy {self.entropy:.3f}, "
            f"mutual information {self.mutual_information:.3f}"
        )
        if self.settled is not None:
            text += f"; settled before the last pass: {self.settled:.1%}"
        return text + "".join(f"\nAUROC of the entropy, {name}: {value:.3f}" for name, value in self.strangers)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    samples: int = 100,
    *,
    confidence: float | None = None,
    strangers: Mapping[str, Tensor] | None = None,
    bins: int = 15,
    seed: int = 0,
) -> Evaluation:
    """Predict with many passes and compare with the labels.

    Args:
        model: a network with sampling layers that returns logits [N, K].
        x: inputs [N, ...].
        y: labels, int64 [N].
        samples: passes, or with ``confidence`` the most that an example gets.
        confidence: stop early, see :func:`predict`.
        strangers: inputs that the network was not made for, by name.
        bins: of the reliability diagram.
        seed: of the noise.

    Raises:
        SamplingError: as :func:`predict`, :func:`reliability` and :func:`auroc`.
    """
    p = predict(model, x, samples, confidence=confidence, seed=seed)
    others = {name: predict(model, value, samples, seed=seed).entropy for name, value in (strangers or {}).items()}
    return Evaluation(
        len(x),
        float(p.samples.double().mean()),
        p.accuracy(y),
        negative_log_likelihood(p.probs, y),
        reliability(p.probs, y, bins),
        float(p.entropy.mean()),
        float(p.mutual_information.mean()),
        None if confidence is None else float(p.settled.double().mean()),
        tuple((name, auroc(p.entropy, entropy)) for name, entropy in others.items()),
    )


def accuracy_by_bits(
    model: nn.Module, x: Tensor, y: Tensor, bits: Sequence[int] = tuple(range(2, 9)), samples: int = 20, seed: int = 0
) -> dict[int, float]:
    """Accuracy with fixed-point weights: number of bits -> share of right answers.

    Raises:
        SamplingError: as :func:`fixed_point` and :func:`predict`.
    """
    found = {}
    for b in bits:
        with fixed_point(model, b):
            found[b] = predict(model, x, samples, seed=seed).accuracy(y)
    return found


def rotate(images: Tensor, degrees: float, fill: float = -1.0) -> Tensor:
    """Images [N, C, H, W] turned about their centre, bilinear, with ``fill`` outside: the usual strangers.

    Raises:
        SamplingError: not four axes.
    """
    if images.ndim != 4:
        raise SamplingError(f"rotate needs images [N, C, H, W], got {tuple(images.shape)}")
    angle = math.radians(degrees)
    turn = images.new_tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    turned: Tensor = F.grid_sample(images - fill, grid, align_corners=False) + fill
    return turned
