"""Defences that switch channels off: Fine-Pruning, channel Lipschitz pruning, adversarial neuron pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from layerscope import training
from layerscope.data import Dataset
from layerscope.methods.medic.baselines.tuning import classifier_of, trainable, tuned
from layerscope.methods.medic.checks import as_clean, private_copy
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.taps import feeds
from layerscope.probe.outputs import pick
from layerscope.probe.points import role_of
from layerscope.training.augment import Augment
from layerscope.training.evaluation import home


@dataclass(frozen=True)
class FinePrune:
    """The penultimate features that are least active on clean data are switched off for good, then fine-tuning.

    Source: Liu, Dolan-Gavitt, Garg 2018, arXiv 1805.12185.
    """

    share: float = 0.5
    lr: float = 0.01
    epochs: int = 20
    batch_size: int = 64
    augment: str | Augment | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The pruned and tuned copy."""
        data, net = as_clean(clean), trainable(model)
        head = classifier_of(net)
        inputs: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().cpu()))
        try:
            training.predict(net, data.x)
        finally:
            handle.remove()
        activity = torch.cat(inputs).flatten(0, -2).mean(0)
        off = activity.argsort()[: int(self.share * len(activity))].to(head.weight.device)

        class Off(training.Callback):
            def on_start(self, run: training.Run) -> None:
                with torch.no_grad():
                    head.weight[:, off] = 0

            on_step = on_start

        return tuned(
            net, data, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, augment=self.augment, seed=seed,
            callbacks=[Off()],
        )  # fmt: skip


@dataclass(frozen=True)
class CLP:
    """Channels whose Lipschitz bound stands out in their layer are switched off: no training.

    Bound of channel c: largest singular value of its kernel as a [C_in, k k] matrix, times |gamma_c| / sqrt(var_c +
    eps); off if above mean + u std of the layer. Published: u = 3, without any data. ``None`` takes the smallest u of
    0, 0.5, ..., 10 that costs at most ``tolerance`` of the accuracy on the clean samples, since in narrow layers
    hardly a channel can stand out by three deviations. Source: Zheng et al., ECCV 2022.
    """

    u: float | None = None
    tolerance: float = 0.02

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The pruned copy; two samples of ``clean`` show which norm follows which layer."""
        net, data = private_copy(model), as_clean(clean)
        device, _ = home(net)
        modules = dict(net.named_modules())
        bounds = {
            then: bound
            for first, then in feeds(net, data.x[:2].to(device))
            if (bound := _lipschitz(modules[first], modules[then])) is not None
        }
        if not bounds:
            raise MedicError(f"{type(net).__name__} has no convolution before a batch norm for CLP to prune")

        def cut(u: float) -> Switches:
            return {name: bound > bound.mean() + u * bound.std() for name, bound in bounds.items()}

        half_steps = (n / 2 for n in range(20, -1, -1))
        return _pruned(net, cut, half_steps if self.u is None else self.u, data, self.tolerance)


def _lipschitz(conv: nn.Module, norm: nn.Module) -> Tensor | None:
    variance, gain, shift = (getattr(norm, n, None) for n in ("running_var", "weight", "bias"))
    if not (isinstance(variance, Tensor) and isinstance(gain, Tensor) and isinstance(shift, Tensor)):
        return None
    if not isinstance(conv, nn.Conv2d):
        return None
    eps = getattr(norm, "eps", 0.0)
    singular: Tensor = torch.linalg.matrix_norm(conv.weight.flatten(2), 2)
    return singular * gain.abs() / (variance + eps).sqrt()


@dataclass(frozen=True)
class ANP:
    """Adversarial neuron pruning: a mask on norm gains, learned while gains and biases are moved against it.

    Minimizes alpha L(m) + (1 - alpha) max L(m + d, xi), |d|, |xi| <= eps relative, the maximum by one signed step from
    a random start, in training mode, as published. Gains whose mask ends at or below the threshold are switched off in
    the untouched network. Published: threshold 0.2. ``None`` takes the highest of 0, 0.05, ..., 0.95 that costs at most
    ``tolerance`` of the accuracy on the clean samples. Source: Wu and Wang, NeurIPS 2021, arXiv 2110.14430.
    """

    eps: float = 0.4
    alpha: float = 0.2
    lr: float = 0.2
    iterations: int = 2000
    threshold: float | None = None
    tolerance: float = 0.02
    batch_size: int = 128

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The pruned copy."""
        data, net = as_clean(clean), private_copy(model)
        weights = dict(net.named_parameters())
        norms = [name for name, m in net.named_modules() if role_of(m) == "norm" and _has_gains(weights, name)]
        if not norms:
            raise MedicError(f"{type(net).__name__} has no norm with gains: ANP has nothing to prune")
        masks = self._masks(private_copy(model).train(), norms, data, seed)

        def cut(threshold: float) -> Switches:
            return {name: mask <= threshold for name, mask in masks.items()}

        steps = (n / 20 for n in range(20))
        # a threshold costs the gain only: what the bias adds is the same for every input
        return _pruned(net, cut, steps if self.threshold is None else self.threshold, data, self.tolerance, ("weight",))

    def _masks(self, net: nn.Module, norms: Sequence[str], data: Dataset, seed: int) -> dict[str, Tensor]:
        device, _ = home(net)
        x, y = data.x.to(device), data.y.to(device)
        weights = dict(net.named_parameters())
        masks = [torch.ones_like(weights[f"{n}.weight"]).requires_grad_(True) for n in norms]
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(masks, lr=self.lr, momentum=0.9)

        def loss(given: Tensor, index: Tensor, moves: Sequence[Tensor]) -> Tensor:
            changed = {}
            for name, mask, move, shift in zip(norms, masks, moves, moves[len(masks) :], strict=False):
                changed[f"{name}.weight"] = weights[f"{name}.weight"] * (mask + move)
                changed[f"{name}.bias"] = weights[f"{name}.bias"] * (1 + shift)
            return F.cross_entropy(pick(functional_call(net, changed, (given,)), None), y[index])

        rest = [torch.zeros_like(m) for m in (*masks, *masks)]
        for _ in range(self.iterations):
            index = torch.randint(len(x), (min(self.batch_size, len(x)),), generator=generator).to(device)
            start = [((2 * torch.rand(m.shape, generator=generator) - 1) * self.eps).to(m) for m in rest]
            start = [s.requires_grad_(True) for s in start]
            # Nobody wants the images' gradient: torch (2.13, CPU) crashes in the backward pass of a GroupNorm whose
            # input lies channels last and needs none, as behind the frozen first layer.
            given = x[index].requires_grad_(True)
            *slopes, _ = torch.autograd.grad(loss(given, index, start), [*start, given])
            worst = [
                (s.detach() + self.eps * slope.sign()).clamp(-self.eps, self.eps)
                for s, slope in zip(start, slopes, strict=True)
            ]
            total = self.alpha * loss(given, index, rest) + (1 - self.alpha) * loss(given, index, worst)
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]  # torch's stubs
            optimizer.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        return {name: mask.detach() for name, mask in zip(norms, masks, strict=True)}


#: norm -> which of its channels to switch off
Switches = dict[str, Tensor]


def _pruned(
    net: nn.Module, cut: Callable[[float], Switches], how: float | Iterable[float], clean: Dataset, tolerance: float,
    parts: Sequence[str] = ("weight", "bias"),
) -> nn.Module:  # fmt: skip
    """``net`` with channels of its norms switched off.

    By one number; or by the last of several, from the mildest to the hardest, before the accuracy on the clean samples
    falls by more than ``tolerance``.
    """
    modules, kept = dict(net.named_modules()), copy.deepcopy(net.state_dict())

    def switch(number: float) -> None:
        net.load_state_dict(kept)
        with torch.no_grad():
            for name, off in cut(number).items():
                for part in parts:
                    getattr(modules[name], part)[off] = 0

    if isinstance(how, int | float):
        switch(how)
        return net.requires_grad_(True)

    def accuracy() -> float:
        return training.evaluate(net, clean).accuracy or 0.0

    enough, last = accuracy() - tolerance, None
    for number in how:
        switch(number)
        if accuracy() < enough:
            break
        last = number
    if last is None:
        net.load_state_dict(kept)
    else:
        switch(last)
    return net.requires_grad_(True)


def _has_gains(weights: Mapping[str, Tensor], norm: str) -> bool:
    return all(f"{norm}.{kind}" in weights and weights[f"{norm}.{kind}"].ndim == 1 for kind in ("weight", "bias"))
