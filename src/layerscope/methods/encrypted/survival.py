"""Will a net of polynomial activations train at this depth? Read off the untrained net, with the trial behind it.

A polynomial of degree two and more raises large values more than small ones, and a batch norm hands the result on with
variance one. So from block to block a few samples take over every channel's variance, and all others shrink towards one
value: their *contrast* falls, for a square doubly exponentially, and with it what a gradient can see. Kurtosis does not
tell, because it ends at the number of samples in the batch long before the net stops training. How well each statistic
predicts stands in papers/she.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from layerscope.copying import duplicate
from layerscope.methods.encrypted.distortion import BlockNet, images, norm_readings, read, trained_net
from layerscope.methods.encrypted.errors import InputError
from layerscope.probe import tap

#: Contrast above which every net of papers/she trained, and below which hardly any did.
SAFE, LOST = -2.0, -4.0
#: Share of the samples of a batch, nearest to its median, whose contrast is measured.
_KEPT = 0.8


@dataclass(frozen=True)
class Initial:
    """An untrained net on a few batches, in training mode; means over the batches."""

    contrast: float
    """log10 of the spread of the classifier's inputs over the 80 % of the samples nearest to their median, over the
    spread of all: 0 where all samples are alike, -5 where the others own all but 1e-5 of the spread."""
    agreement: float
    """Mean cosine between the batches' gradients at the middle convolution: 0 where batches pull nowhere together."""
    rank: float
    """log10 of (effective rank - 1) of the centred classifier inputs."""
    kurtosis: float
    """Of the last batch norm's outputs; ends at about the number of samples."""
    absmax: float
    """Largest of these outputs in standard deviations."""
    bulk: float
    """log10 of their interquartile range over that of a normal of the same variance, mean over channels."""
    samples: float
    """Effective share of samples (sum e)^2 / (N sum e^2), e a sample's energy there; 1 / N where one owns all."""


@dataclass(frozen=True)
class Survival:
    """Whether a net will train, from its untrained statistics."""

    initial: Initial
    survives: bool | None
    """None between the two thresholds, where seeds decide."""
    reason: str

    def __str__(self) -> str:
        return {True: "will train", False: "will not train", None: "undecided"}[self.survives] + f": {self.reason}"


def predict_survival(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 100) -> Survival:
    """Whether ``model``, a fresh net of convolutions, batch norms and polynomial activations, will train.

    The thresholds were chosen on nets of 4 to 12 blocks and 16 channels and checked on other seeds and deeper ones.

    Args:
        model: untrained; it is copied, not changed.
        x: at least two batches of training images [N, C, H, W].
        y: their labels.
        batch: the batch size of the training to come.

    Raises:
        InputError: as :func:`initial`.
    """
    found = initial(model, x, y, batch=batch)
    contrast = f"the contrast between ordinary samples at the classifier is 10^{found.contrast:.1f} of the whole"
    if found.contrast > SAFE:
        return Survival(found, True, f"{contrast}: enough to train on")
    if found.contrast < LOST:
        return Survival(found, False, f"{contrast}: outliers own the batch statistics; use ReLU, or fewer blocks")
    return Survival(found, None, f"{contrast}: between {LOST:g} and {SAFE:g} the seed decides; try, or use ReLU")


def initial(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 100) -> Initial:
    """The statistics of ``model`` on ``x`` in batches, in float64 on a copy.

    Raises:
        InputError: no batch norm, convolution or linear layer, fewer than two batches, or inputs without labels.
    """
    net = duplicate(model, InputError).double().train()
    norms = [name for name, m in net.named_modules() if isinstance(m, _BatchNorm)]
    heads = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    if not (norms and heads and convs):
        raise InputError("expected a net of convolutions and batch norms with a linear classifier")
    if len(x) != len(y) or len(x) < 2 * batch:
        raise InputError(f"expected at least two batches of {batch} samples with labels, got {len(x)} and {len(y)}")
    weight, gradients = convs[len(convs) // 2].weight, []
    with (
        tap(net, _norm_numbers, select=norms[-1:]) as outputs,
        tap(net, _feature_numbers, select=heads[-1:], inputs=True) as features,
    ):
        for start in range(0, len(x) - batch + 1, batch):
            part, labels = x[start : start + batch], y[start : start + batch]
            loss = F.cross_entropy(net(part.double()), labels)
            gradients.append(torch.autograd.grad(loss, weight)[0].flatten())
    found: dict[str, float] = {}
    for readings, place in ((outputs, norms[-1]), (features, heads[-1])):
        if place not in readings:
            raise InputError(f"{place} is the last of its kind but is not seen running; give the part that runs")
        found |= {key: _mean([one[key] for one in readings[place]]) for key in readings[place][0]}
    return Initial(agreement=_agreement(torch.stack(gradients)), **found)


def _norm_numbers(z: Tensor) -> dict[str, float]:
    """Of the last norm's output [N, C, H, W]."""
    return {
        "kurtosis": read(z).kurtosis,
        "absmax": float((z - z.mean()).abs().max() / z.std().clamp(min=1e-30)),
        "bulk": math.log10(max(_bulk(z), 1e-30)),
        "samples": _share(z),
    }


def _feature_numbers(features: Tensor) -> dict[str, float]:
    """Of what the classifier is given."""
    flat = features.flatten(1)
    return {"contrast": _contrast(flat), "rank": math.log10(max(_rank(flat) - 1, 1e-16))}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _contrast(features: Tensor) -> float:
    distance = (features - features.median(0).values).norm(dim=1)
    kept = features[distance <= distance.quantile(_KEPT)]
    inner, whole = float(kept.std(0).norm()), float(features.std(0).norm())
    return math.log10(max(inner / whole, 1e-30)) if whole > 0 else -30.0


def _agreement(gradients: Tensor) -> float:
    unit = gradients / gradients.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines = unit @ unit.T
    count = len(unit)
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def _rank(features: Tensor) -> float:
    """exp(entropy) of the normalized eigenvalues of the centred Gram matrix."""
    centred = features - features.mean(0)
    values = torch.linalg.svdvals(centred / centred.abs().max().clamp(min=1e-300)).square()
    p = values / values.sum().clamp(min=1e-300)
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))


def _bulk(z: Tensor) -> float:
    rows = z.transpose(0, 1).flatten(1)
    low, high = (rows.kthvalue(1 + round(q * (rows.shape[1] - 1)), dim=1).values for q in (0.25, 0.75))
    return float(((high - low) / (1.348979500392163 * rows.std(1).clamp(min=1e-30))).mean())


def _share(z: Tensor) -> float:
    energy = z.flatten(1).square().sum(1)
    return float(energy.sum().square() / (len(energy) * energy.square().sum()).clamp(min=1e-300))


def trial(
    depth: int, activation: str, seed: int, epochs: int = 4, samples: int = 6000, tests: int = 2000, device: str = "cpu"
) -> dict[str, Any]:
    """One row of the study in papers/she: the untrained statistics, then the training and what came of it.

    Fashion-MNIST averaged to 14 x 14 and normalised; AdamW without decay, one cycle to 4e-3, batch 100, gradient norm
    at most 1.
    """
    train, test = images("train", samples, device), images("test", tests, device)
    net, loss = trained_net(depth, activation, train, 10, seed, epochs, 100, 4e-3)
    with torch.no_grad():
        accuracy = float((net(test[0]).argmax(1) == test[1]).float().mean())
        seen = float((net(train[0][:tests]).argmax(1) == train[1][:tests]).float().mean())
    after = norm_readings(net, test[0])
    return {
        "accuracy": accuracy,
        "train_accuracy": seen,
        "loss": loss,
        "init": asdict(untrained(depth, activation, seed)),
        "kurtosis": [layer.kurtosis for layer in after],
        "absmax": [layer.absmax for layer in after],
        "finite": [layer.finite_fraction for layer in after],
    }


def untrained(depth: int, activation: str, seed: int) -> Initial:
    """The statistics of the net that :func:`trial` trains, on the first 800 training images, on the CPU."""
    x, y = images("train", 800)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlockNet(depth, activation, x.shape[1:], 10)
    return initial(net, x, y)
