"""How sure a prediction is, and whether that sureness can be trusted. Pure functions on tensors; float64 inside.

K classes, N examples, S samples. Entropies in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerscope.methods.sampling.errors import SamplingError


def predictive_entropy(probs: Tensor) -> Tensor:
    """-sum_k p_k log p_k of the mean softmax [N, K] -> [N]. In [0, log K]; high where the network does not know."""
    terms: Tensor = torch.special.entr(probs.double())
    return terms.sum(-1)


def mutual_information(samples: Tensor) -> Tensor:
    """Entropy of the mean minus mean entropy, of softmax samples [S, N, K] -> [N]. In [0, log K].

    The part of the uncertainty on which the samples disagree; 0 where every pass says the same.
    """
    p = samples.double()
    return (predictive_entropy(p.mean(0)) - predictive_entropy(p).mean(0)).clamp_min(0)


def vote_share(samples: Tensor) -> Tensor:
    """Share of the S passes whose class is the most frequent one, [S, N, K] -> [N]. In [1/K, 1]."""
    votes = torch.nn.functional.one_hot(samples.argmax(-1), samples.shape[-1]).double().mean(0)
    return votes.amax(-1)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: equal bins of confidence, empty ones left out."""

    confidence: tuple[float, ...]
    """Mean confidence in each bin."""
    accuracy: tuple[float, ...]
    """Share of right answers in each bin."""
    count: tuple[int, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence|, weighted by the bins' shares. In [0, 1], 0 is best."""
        total = sum(self.count)
        gaps = zip(self.accuracy, self.confidence, self.count, strict=True)
        return sum(abs(a - c) * n for a, c, n in gaps) / total


def reliability(probs: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Confidence against accuracy in equal bins ((i / bins, (i + 1) / bins]) of the largest probability.

    Args:
        probs: [N, K], rows sum to 1.
        labels: int64 [N].
        bins: number of bins.

    Raises:
        SamplingError: no example, shapes that do not match, a label outside the classes, no bin.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    _matching(probs, labels)
    if bins < 1:
        raise SamplingError(f"a reliability diagram needs at least one bin, got {bins}")
    confidence, guess = probs.double().max(-1)
    right = (guess == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index, minlength=bins)
    used = count > 0

    def mean(values: Tensor) -> tuple[float, ...]:
        total = torch.zeros(bins, dtype=torch.float64, device=values.device).index_add_(0, index, values)
        return tuple((total[used] / count[used]).tolist())

    return Reliability(mean(confidence), mean(right), tuple(count[used].tolist()))


def negative_log_likelihood(probs: Tensor, labels: Tensor) -> float:
    """-mean log p(label) of the mean softmax [N, K], nats: rewards being right and being honest about it. 0 is best.

    Infinite where a label has probability 0.

    Raises:
        SamplingError: no example, shapes that do not match, or a label outside the classes.
    """
    _matching(probs, labels)
    return -float(probs.double().gather(1, labels[:, None]).log().mean())


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that an outside example scores higher than an inside one, ties counted half. In [0, 1], 0.5 at random.

    With uncertainties as scores: how well they tell inputs the network was not made for.

    Args:
        inside: scores [N] of ordinary inputs.
        outside: scores [M] of others.

    Raises:
        SamplingError: an empty side, or a NaN.
    """
    inside, outside = inside.double().flatten(), outside.double().flatten()
    if not len(inside) or not len(outside) or bool(torch.cat([inside, outside]).isnan().any()):
        raise SamplingError("auroc needs at least one score on each side, and no NaN")
    order = inside.sort().values
    below = torch.searchsorted(order, outside, right=False)
    up_to = torch.searchsorted(order, outside, right=True)
    return float((below + up_to).double().mean() / 2 / len(inside))


def _matching(probs: Tensor, labels: Tensor) -> None:
    if probs.ndim != 2 or len(probs) == 0 or labels.shape != probs.shape[:1]:
        raise SamplingError(f"expected probs [N, K] and labels [N], got {tuple(probs.shape)} and {tuple(labels.shape)}")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= probs.shape[1]:
        raise SamplingError(
            f"labels must be integers from 0 to {probs.shape[1] - 1}, got {labels.dtype} from {labels.min()} to "
            f"{labels.max()}"
        )
    if not bool((probs >= 0).all()) or float((probs.double().sum(1) - 1).abs().max()) > 1e-3:
        raise SamplingError("rows of probs must be probabilities that sum to 1: take softmax of logits first")
