"""Will a net of polynomial activations train at this depth? Statistics of the untrained net, and the trial behind them.

A polynomial of degree two and more raises large values more than small ones, and a batch norm hands the result on with
variance one. So from block to block a few samples take over each channel's variance, and all others shrink towards one
value. Each statistic here is read off one batch at random initialization; the trial trains the same net and says what
came of it. What each of them predicts stands in papers/she.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods.encrypted.distortion import BlockNet, norm_outputs, tails, trained_net

#: Samples of the batch that the statistics are read off.
BATCH = 200


@dataclass(frozen=True)
class Initial:
    """One batch through an untrained net in training mode; everything at the deepest batch norm unless said."""

    kurtosis: float
    """Of all its outputs; cannot exceed the number of samples that dominate."""
    absmax: float
    """Largest output in standard deviations."""
    bulk: float
    """Interquartile range over that of a normal of the same variance: 1 for a normal, 0 where outliers own the variance."""
    samples: float
    """Effective share of samples: (sum e)^2 / (N sum e^2) of each sample's energy e; 1 / N where one sample owns all."""
    spread: float
    """Standard deviation over samples of log10 of a sample's root mean square."""
    loss: float
    gradient_samples: float
    """The same share of the gradient's energy at the first norm."""
    gradient_ratio: float
    """log10 of the gradient norm at the first convolution's weight over that at the last one's."""
    rank: float
    """Effective rank of the centred features that the linear head reads."""
    bulks: tuple[float, ...]
    """``bulk`` of every norm, first to last."""
    absmaxes: tuple[float, ...]


def initial(net: BlockNet, x: Tensor, y: Tensor) -> Initial:
    """Statistics of ``net`` on one batch; its running statistics and gradients are left as they were.

    Args:
        net: untrained.
        x: images [N, C, H, W].
        y: labels [N].
    """
    state = {k: v.clone() for k, v in net.state_dict().items()}
    was_training = net.training
    net.train()
    outputs: list[Tensor] = []
    features: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    handles = [norm.register_forward_hook(keep) for norm in net.norms]
    handles.append(net.head.register_forward_pre_hook(lambda m, inputs: features.append(inputs[0].detach())))
    try:
        loss = F.cross_entropy(net(x), y)
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        net.load_state_dict(state)
        net.train(was_training)
    weights = [conv.weight.grad for conv in (net.convs[0], net.convs[-1])]
    norms = [0.0 if w is None else float(w.double().norm()) for w in weights]
    first = outputs[0].grad
    net.zero_grad(set_to_none=True)
    layers = [out.detach().double() for out in outputs]
    last = layers[-1]
    scale = last.flatten(1).square().mean(1).sqrt()
    return Initial(
        kurtosis=tails(0, last.flatten(), last.flatten()).kurtosis,
        absmax=_absmax(last),
        bulk=_bulk(last),
        samples=_share(last),
        spread=float(scale.clamp(min=1e-30).log10().std()),
        loss=float(loss.detach()),
        gradient_samples=math.nan if first is None else _share(first.double()),
        gradient_ratio=math.log10(norms[0] / norms[1]) if min(norms) > 0 else math.nan,
        rank=_rank(features[0].double()),
        bulks=tuple(_bulk(z) for z in layers),
        absmaxes=tuple(_absmax(z) for z in layers),
    )


def _absmax(z: Tensor) -> float:
    return float((z - z.mean()).abs().max() / z.std().clamp(min=1e-30))


def _bulk(z: Tensor) -> float:
    """Mean over channels of the interquartile range in units of a normal's."""
    rows = z.transpose(0, 1).flatten(1)
    quartiles = rows.quantile(torch.tensor([0.25, 0.75], dtype=rows.dtype, device=rows.device), dim=1)
    wide = rows.std(1).clamp(min=1e-30)
    return float(((quartiles[1] - quartiles[0]) / (1.348979500392163 * wide)).mean())


def _share(z: Tensor) -> float:
    energy = z.flatten(1).square().sum(1)
    return float(energy.sum().square() / (len(energy) * energy.square().sum()).clamp(min=1e-300))


def _rank(features: Tensor) -> float:
    """exp(entropy) of the normalized eigenvalues of the centred Gram matrix."""
    centred = features - features.mean(0)
    values = torch.linalg.svdvals(centred / centred.abs().max().clamp(min=1e-30)).square()
    p = values / values.sum()
    p = p[p > 1e-15]
    return float(torch.exp(-(p * p.log()).sum()))


def trial(
    depth: int, activation: str, seed: int, epochs: int = 4, samples: int = 6000, tests: int = 2000, device: str = "cpu"
) -> dict[str, Any]:
    """One row of the study: statistics at initialization, then the training, then accuracy and tails.

    Fashion-MNIST averaged to 14 x 14 and normalised; Adam, one cycle to 4e-3, batch 100, gradient norm at most 1.
    """
    train, test = images("train", samples, device), images("test", tests, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = BlockNet(depth, activation, train[0].shape[1:], 10).to(device)
    before = initial(fresh, train[0][:BATCH], train[1][:BATCH])
    net, loss = trained_net(depth, activation, train, 10, seed, epochs, 100, 4e-3)
    with torch.no_grad():
        accuracy = float((net(test[0]).argmax(1) == test[1]).float().mean())
        seen = float((net(train[0][:tests]).argmax(1) == train[1][:tests]).float().mean())
    after = [tails(i, z, z) for i, z in enumerate(norm_outputs(net, test[0]))]
    return {
        "accuracy": accuracy,
        "train_accuracy": seen,
        "loss": loss,
        "init": asdict(before),
        "kurtosis": [layer.kurtosis for layer in after],
        "absmax": [layer.absmax for layer in after],
        "finite": [layer.finite_fraction for layer in after],
    }


def images(split: str, count: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The first ``count`` Fashion-MNIST images in [0, 1], averaged 2 x 2, normalised by 0.286 and 0.32."""
    from layerscope import data

    found = data.load("fashion-mnist", split)
    x = F.avg_pool2d((found.x[:count] + 1) / 2, 2)
    return ((x - 0.286) / 0.32).to(device), found.y[:count].to(device)
