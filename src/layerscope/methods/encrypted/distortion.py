"""The activation-distortion study: what a polynomial activation hands to the next batch norm, at what depth.

For every depth, activation and seed a small CNN of blocks convolution - norm - activation is trained; a ReLU net is
also run with its activation swapped and its running statistics kept. The output of every norm is compared with that of
the ReLU net: KL of histograms (which clip), and beside it tail statistics (which do not). The readings are taken at the
probe's call sites, by :func:`layerscope.probe.tap`, because ``profile`` measures in training mode and knows neither
histograms nor fourth moments.

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

from layerscope import norms, probe
from layerscope._show import Shown
from layerscope.methods.encrypted.errors import InputError
from layerscope.methods.encrypted.polynomials import COEFFICIENTS, Polynomial
from layerscope.methods.encrypted.trace import trace

_BINS, _REACH = 60, 6.0


@dataclass(frozen=True)
class LayerTails:
    """The output of one norm on the test inputs."""

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
    """Kurtosis of the last norm's output at random initialization, in training mode."""
    norm: str
    foldable: bool
    """Whether the norm is a constant affine map at inference, so that it costs nothing under encryption."""

    @property
    def last(self) -> LayerTails:
        """The deepest norm."""
        return self.layers[-1]


@dataclass(frozen=True)
class ActivationStudy(Shown):
    """All trials."""

    trials: tuple[Trial, ...]
    samples: int
    epochs: int

    def of(self, depth: int, activation: str, mode: str = "trained", norm: str = "batch") -> tuple[Trial, ...]:
        """Trials of one cell, one a seed."""
        cell = (depth, activation, mode, norm)
        return tuple(t for t in self.trials if (t.depth, t.activation, t.mode, t.norm) == cell)


class BlockNet(nn.Module):
    """``depth`` blocks conv 3 x 3 - norm - activation, average pools after blocks 2 and 4, a linear head."""

    def __init__(
        self,
        depth: int,
        activation: str,
        in_shape: Sequence[int],
        classes: int,
        *,
        width: int = 16,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, size = int(in_shape[0]), (int(in_shape[1]), int(in_shape[2]))
        self.pooled = [i for i in (2, 4) if i <= depth]
        for block in range(1, depth + 1):
            self.convs.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.norms.append(norms.build(norm, width))
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
    norm: str = "batch",
    epochs: int = 4,
    batch_size: int = 100,
    lr: float = 4e-3,
) -> ActivationStudy:
    """Train and swap; every trial is compared with the ReLU net of the same depth, seed and norm.

    Args:
        train: normalised images [N, C, H, W] and labels.
        test: the same, held out.
        depths: numbers of blocks.
        trained: polynomials to train from scratch.
        swapped: polynomials to put into the trained ReLU net, running statistics kept.
        seeds: of weights and data order.
        norm: any choice of the package, such as ``group:groups=4``; ``foldable`` says whether encryption gets it free.
        epochs: of Adam with a one-cycle schedule and gradient norm 1.
        batch_size: samples a step.
        lr: peak learning rate.

    Raises:
        TrainingError: a training that cannot start; one that diverges is a row with accuracy at chance.
        InputError: a norm choice that puts no layer between convolution and activation.
    """
    classes = int(train[1].max()) + 1
    trials: list[Trial] = []
    for depth in depths:
        for seed in seeds:
            relu, loss = trained_net(depth, "relu", train, classes, seed, epochs, batch_size, lr, norm)
            reference = norm_readings(relu, test[0])
            if len(reference) != depth:
                raise InputError(f"norm={norm!r} leaves no norm to read after every convolution")
            trials.append(_trial(depth, norm, "relu", "trained", seed, relu, loss, test, reference, train[0]))
            for name in trained:
                net, loss = trained_net(depth, name, train, classes, seed, epochs, batch_size, lr, norm)
                trials.append(_trial(depth, norm, name, "trained", seed, net, loss, test, reference, train[0]))
            for name in swapped:
                net = _swap(relu, depth, name, train[0].shape[1:], classes, norm)
                trials.append(_trial(depth, norm, name, "swapped", seed, net, None, test, reference, train[0]))
    return ActivationStudy(tuple(trials), len(train[0]), epochs)


@dataclass(frozen=True)
class Reading:
    """What is kept of one norm's output: plain numbers, taken while it passes by."""

    mean: float
    variance: float
    kurtosis: float
    absmax: float
    finite_fraction: float
    histogram: tuple[float, ...]
    """Shares of 60 bins on [-6, 6], what lies outside counted at the ends; empty where nothing is finite."""


def read(z: Tensor) -> Reading:
    """The statistics of all finite values of ``z``, in float64."""
    z = z.double().flatten()
    finite = z[torch.isfinite(z)]
    share = finite.numel() / z.numel()
    if finite.numel() < 2:
        return Reading(math.nan, math.nan, math.nan, math.nan, share, ())
    mean = finite.mean()
    centred = finite - mean
    # scaled before the fourth power: values near 1e80 would overflow float64 and hide how heavy the tail is
    scale = float(centred.abs().max().clamp(min=1e-300))
    unit = centred / scale
    second = unit.square().mean()
    kurtosis = float(unit.pow(4).mean() / second.square().clamp(min=1e-300))
    variance = float(second) * scale**2 if scale < 1e150 else math.inf
    counts = torch.histc(finite.clamp(-_REACH, _REACH).float(), _BINS, -_REACH, _REACH).double() + 1e-6 * len(finite)
    histogram = tuple((counts / counts.sum()).tolist())
    return Reading(float(mean), variance, kurtosis, float(finite.abs().max()), share, histogram)


def norm_readings(net: nn.Module, x: Tensor) -> list[Reading]:
    """One reading for every norm on ``x``, in the order of execution; ``net`` runs in the mode it is in."""
    with probe.tap(net, read, roles=("norm",)) as found, torch.no_grad():
        net(x)
    return [reading for calls in found.values() for reading in calls]


def tails(layer: int, z: Reading, reference: Reading) -> LayerTails:
    """One norm's output beside the ReLU net's."""
    kl = math.inf
    if z.histogram and reference.histogram:
        kl = sum(p * math.log(p / q) for p, q in zip(z.histogram, reference.histogram, strict=True))
    ratio = z.variance / reference.variance if reference.variance else math.nan
    return LayerTails(layer, kl, z.mean - reference.mean, ratio, z.kurtosis, z.absmax, z.finite_fraction)


def trained_net(
    depth: int,
    name: str,
    train: tuple[Tensor, Tensor],
    classes: int,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
    norm: str = "batch",
) -> tuple[BlockNet, float]:
    """A trained :class:`BlockNet` in evaluation mode and its last training loss."""
    from layerscope import training

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlockNet(depth, name, train[0].shape[1:], classes, norm=norm).to(train[0].device)
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


def _swap(relu: BlockNet, depth: int, name: str, in_shape: Sequence[int], classes: int, norm: str) -> BlockNet:
    with torch.random.fork_rng(devices=[]):
        net = BlockNet(depth, name, in_shape, classes, norm=norm).to(relu.head.weight.device)
    net.load_state_dict(relu.state_dict())
    return net.eval()


def _trial(
    depth: int,
    norm: str,
    name: str,
    mode: str,
    seed: int,
    net: BlockNet,
    loss: float | None,
    test: tuple[Tensor, Tensor],
    reference: list[Reading],
    inputs: Tensor,
) -> Trial:
    x, y = test
    with torch.no_grad():
        accuracy = float((net(x).argmax(1) == y).float().mean())
    layers = tuple(tails(i, z, r) for i, (z, r) in enumerate(zip(norm_readings(net, x), reference, strict=True)))
    growth = init_kurtosis(depth, name, inputs, seed, norm=norm)
    return Trial(depth, name, mode, seed, accuracy, loss, layers, growth, norm, is_foldable(norm))


def is_foldable(norm: str) -> bool:
    """Whether a norm choice is a constant affine map at inference: then it disappears into a convolution.

    >>> is_foldable("batch"), is_foldable("layer")
    (True, False)
    """
    channels = 4
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(1, channels, 1), norms.build(norm, channels)).eval()
    return all(step.op != "opaque" for step in trace(net, (1, 4, 4)).steps)


def init_kurtosis(
    depth: int, name: str, inputs: Tensor, seed: int, samples: int = 200, *, norm: str = "batch"
) -> float:
    """Kurtosis of the last norm's output before any training, in training mode.

    The hypothesis to test: where this is far above the ReLU net's, single activations dominate every batch statistic
    and the net will not train. It orders depths of one activation, but is no threshold across activations (see
    papers/she): a sample of n values cannot show a kurtosis above n.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlockNet(depth, name, inputs.shape[1:], 2, norm=norm).to(inputs.device).train()
    return norm_readings(net, inputs[:samples])[-1].kurtosis


def trial(
    depth: int,
    seed: int,
    epochs: int = 4,
    samples: int = 6000,
    tests: int = 2000,
    device: str = "cpu",
    norm: str = "batch",
    trained: tuple[str, ...] = tuple(COEFFICIENTS),
) -> dict[str, Any]:
    """One row of the study in papers/she: polynomials at one depth and seed, trained, and swapped into the ReLU net."""
    study = study_activations(
        images("train", samples, device),
        images("test", tests, device),
        depths=(depth,),
        trained=trained,
        seeds=(seed,),
        norm=norm,
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
