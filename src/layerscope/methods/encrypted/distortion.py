"""The activation-distortion study: what a polynomial activation hands to the next batch norm, at what depth.

For every depth, activation and seed a small CNN of blocks convolution - batch norm - activation is trained; a ReLU net
is also run with its activation swapped and its running statistics kept. The output of every batch norm is compared
with that of the ReLU net: KL of histograms (which clip), and beside it tail statistics (which do not).

Claim under test: arXiv 1906.00148, Fig. 1. Counted as foldable under encryption is every norm that is a constant affine
map at inference; others divide by an encrypted statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope._show import Shown
from layerscope.methods.encrypted.folding import norm_affine
from layerscope.methods.encrypted.polynomials import COEFFICIENTS, Polynomial

_BINS, _REACH = 60, 6.0


@dataclass(frozen=True)
class LayerTails:
    """The output of one batch norm on the test inputs."""

    layer: int
    kl: float
    """KL(this || ReLU net) of histograms of 60 bins on [-6, 6]; blind to what lies outside."""
    mean_shift: float
    variance_ratio: float
    kurtosis: float
    """Fourth standardised moment; 3 for a normal."""
    absmax: float
    finite_fraction: float


@dataclass(frozen=True)
class Trial:
    """One network."""

    depth: int
    activation: str
    mode: str
    """``trained`` with this activation, or ``swapped`` into the trained ReLU net."""
    seed: int
    accuracy: float
    loss: float | None
    """Last training loss; None for a swapped net."""
    layers: tuple[LayerTails, ...]
    init_growth: float
    """Kurtosis of the last batch norm's output at random initialization, batch statistics."""
    foldable: bool

    @property
    def last(self) -> LayerTails:
        """The deepest batch norm."""
        return self.layers[-1]


@dataclass(frozen=True)
class ActivationStudy(Shown):
    """All trials."""

    trials: tuple[Trial, ...]
    samples: int
    epochs: int

    def of(self, depth: int, activation: str, mode: str = "trained") -> tuple[Trial, ...]:
        """Trials of one cell, one a seed."""
        return tuple(t for t in self.trials if (t.depth, t.activation, t.mode) == (depth, activation, mode))


class BlockNet(nn.Module):
    """``depth`` blocks conv 3 x 3 - norm - activation, average pools after blocks 2 and 4, a linear head."""

    def __init__(self, depth: int, activation: str, in_shape: Sequence[int], classes: int, *, width: int = 16) -> None:
        super().__init__()
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, size = int(in_shape[0]), (int(in_shape[1]), int(in_shape[2]))
        self.pooled = [i for i in (2, 4) if i <= depth]
        for block in range(1, depth + 1):
            self.convs.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(width))
            self.acts.append(activation_of(activation))
            channels = width
            if block in self.pooled:
                size = (size[0] // 2, size[1] // 2)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(width * size[0] * size[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, classes]."""
        for block, (conv, norm, act) in enumerate(zip(self.convs, self.norms, self.acts, strict=True), 1):
            x = act(norm(conv(x)))
            if block in self.pooled:
                x = self.pool(x)
        out: Tensor = self.head(x.flatten(1))
        return out


def activation_of(name: str) -> nn.Module:
    """``relu`` or a polynomial of :data:`~layerscope.methods.encrypted.polynomials.COEFFICIENTS`."""
    return nn.ReLU() if name == "relu" else Polynomial(name)


def study_activations(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    depths: Sequence[int] = (2, 4, 6, 8),
    trained: Sequence[str] = ("square", "herm2"),
    swapped: Sequence[str] = ("square", "quad8", "herm2", "herm4"),
    seeds: Sequence[int] = (0,),
    epochs: int = 4,
    batch_size: int = 100,
    lr: float = 4e-3,
) -> ActivationStudy:
    """Train and swap; every trial is compared with the ReLU net of the same depth and seed.

    Args:
        train: normalised images [N, C, H, W] and labels.
        test: the same, held out.
        depths: numbers of blocks.
        trained: polynomials to train from scratch.
        swapped: polynomials to put into the trained ReLU net, running statistics kept.
        seeds: of weights and data order.
        epochs: of Adam with a one-cycle schedule and gradient norm 1.
        batch_size: samples a step.
        lr: peak learning rate.

    Raises:
        TrainingError: a training that cannot start; one that diverges is a row with accuracy at chance.
    """
    classes = int(train[1].max()) + 1
    trials: list[Trial] = []
    for depth in depths:
        for seed in seeds:
            relu, loss = trained_net(depth, "relu", train, classes, seed, epochs, batch_size, lr)
            reference = norm_outputs(relu, test[0])
            trials.append(_trial(depth, "relu", "trained", seed, relu, loss, test, reference, train[0]))
            for name in trained:
                net, loss = trained_net(depth, name, train, classes, seed, epochs, batch_size, lr)
                trials.append(_trial(depth, name, "trained", seed, net, loss, test, reference, train[0]))
            for name in swapped:
                net = _swap(relu, depth, name, train[0].shape[1:], classes)
                trials.append(_trial(depth, name, "swapped", seed, net, None, test, reference, train[0]))
    return ActivationStudy(tuple(trials), len(train[0]), epochs)


def norm_outputs(net: BlockNet, x: Tensor) -> list[Tensor]:
    """Every norm's output on ``x``, as float64 vectors."""
    kept: list[Tensor] = []
    handles = [
        n.register_forward_hook(lambda m, i, out: kept.append(out.detach().double().flatten())) for n in net.norms
    ]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def tails(layer: int, z: Tensor, reference: Tensor) -> LayerTails:
    """One norm's output beside the ReLU net's."""
    finite = z[torch.isfinite(z)]
    share = finite.numel() / z.numel()
    if finite.numel() < 2:
        return LayerTails(layer, math.inf, math.nan, math.nan, math.nan, math.nan, share)
    centred = finite - finite.mean()
    # scaled before the fourth power: values near 1e80 would overflow float64 and hide how heavy the tail is
    scale = centred.abs().max().clamp(min=1e-300)
    unit = centred / scale
    second = unit.square().mean()
    kurtosis = float(unit.pow(4).mean() / second.square().clamp(min=1e-300))
    variance = float(second) * float(scale) ** 2 if float(scale) < 1e150 else math.inf
    return LayerTails(
        layer,
        _kl(finite, reference),
        float(finite.mean() - reference.mean()),
        variance / float(reference.var(correction=0)),
        kurtosis,
        float(finite.abs().max()),
        share,
    )


def _kl(z: Tensor, reference: Tensor) -> float:
    def histogram(x: Tensor) -> Tensor:
        counts = torch.histc(x.clamp(-_REACH, _REACH).float(), _BINS, -_REACH, _REACH).double() + 1e-6 * len(x)
        return counts / counts.sum()

    p, q = histogram(z), histogram(reference)
    return float((p * (p / q).log()).sum())


def trained_net(
    depth: int,
    name: str,
    train: tuple[Tensor, Tensor],
    classes: int,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
) -> tuple[BlockNet, float]:
    """A trained :class:`BlockNet` in evaluation mode and its last training loss."""
    from layerscope import training

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlockNet(depth, name, train[0].shape[1:], classes).to(train[0].device)
    history = training.fit(
        net,
        train,
        epochs=epochs,
        batch_size=batch_size,
        optimizer="adamw",
        lr=lr,
        schedule="onecycle",
        clip=1.0,
        seed=seed,
        progress=False,
    )
    return net.eval(), float(history.losses[-1]) if history.losses else math.nan


def _swap(relu: BlockNet, depth: int, name: str, in_shape: Sequence[int], classes: int) -> BlockNet:
    with torch.random.fork_rng(devices=[]):
        net = BlockNet(depth, name, in_shape, classes).to(relu.head.weight.device)
    net.load_state_dict(relu.state_dict())
    return net.eval()


def _trial(
    depth: int,
    name: str,
    mode: str,
    seed: int,
    net: BlockNet,
    loss: float | None,
    test: tuple[Tensor, Tensor],
    reference: list[Tensor],
    inputs: Tensor,
) -> Trial:
    x, y = test
    with torch.no_grad():
        accuracy = float((net(x).argmax(1) == y).float().mean())
    layers = tuple(tails(i, z, r) for i, (z, r) in enumerate(zip(norm_outputs(net, x), reference, strict=True)))
    growth = init_kurtosis(depth, name, inputs, seed)
    foldable = all(norm_affine(norm) is not None for norm in net.norms)
    return Trial(depth, name, mode, seed, accuracy, loss, layers, growth, foldable)


def init_kurtosis(depth: int, name: str, inputs: Tensor, seed: int, samples: int = 200) -> float:
    """Kurtosis of the last norm's output before any training, with batch statistics.

    The hypothesis to test: where this is far above the ReLU net's, single activations dominate every batch statistic
    and the net will not train. It orders depths of one activation, but is no threshold across activations (see
    papers/she): a sample of n values cannot show a kurtosis above n.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlockNet(depth, name, inputs.shape[1:], 2).to(inputs.device).train()
    out = norm_outputs(net, inputs[:samples])[-1]
    return tails(depth - 1, out, out).kurtosis


def trial(
    depth: int,
    seed: int,
    epochs: int = 4,
    samples: int = 6000,
    tests: int = 2000,
    device: str = "cpu",
    trained: tuple[str, ...] = ("square", "herm2"),
) -> dict[str, Any]:
    """One row of the study in papers/she: polynomials at one depth and seed, trained, and swapped into the ReLU net."""
    study = study_activations(
        images("train", samples, device),
        images("test", tests, device),
        depths=(depth,),
        trained=trained,
        seeds=(seed,),
        epochs=epochs,
    )
    return {"trials": study.to_dict()["trials"]}


def images(split: str, count: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The first ``count`` Fashion-MNIST images in [0, 1], averaged 2 x 2, normalised by 0.286 and 0.32."""
    from layerscope import data

    found = data.load("fashion-mnist", split)
    x = nn.functional.avg_pool2d((found.x[:count] + 1) / 2, 2)
    return ((x - 0.286) / 0.32).to(device), found.y[:count].to(device)


def known_activations() -> tuple[str, ...]:
    """Names for :func:`study_activations`."""
    return ("relu", *COEFFICIENTS)
